"""What happens when a reward is maximised for too long: python benchmarks/overoptimisation.py --jobs 2.

Trains with each reward alone and plain DDPO, for 16 rounds, and judges some clips after every second round. Where the
reward still rises and the judges that no adapter is trained with fall, it is exploited (Gao et al., 2022, arXiv
2210.10760). An interrupted run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert

from music_ddpo.core.files import write_text
from trials import PROJECT, Job, changes_of, parser_of, run

RESULT = PROJECT / "benchmarks" / "results" / "overoptimisation.json"
PLOT = PROJECT / "plots" / "overoptimisation.svg"
SEEDS = (777, 1, 2)
REWARDS = ("clap", "emopia")
REWARD = "the reward"  # that the adapter is trained with
PLAIN = {"emopia.members": 1, "ddpo.kl": 0.0, "ddpo.rounds": 16, "ddpo.learning_rate": 0.015}


def jobs_of(seeds: Sequence[int], changes: dict[str, Any]) -> list[Job]:
    """A job for each reward and seed."""
    changes = PLAIN | changes
    return [Job(f"{reward} alone", reward, seed, changes, hear_every=True) for reward in REWARDS for seed in seeds]


def curves(results: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Rows of "reward", "seed", "round", "measure" and "value": what is heard at each round of each training."""
    rows = []
    for result in results:
        for point in result["curve"]:
            judges = point["judges"]
            measures = {
                REWARD: judges[result["reward"]]["value"],
                "listener: accuracy": judges.get("listener", {}).get("accuracy"),
                "listener: instrument": judges.get("listener", {}).get("instrument"),
                "held_out: similarity": judges.get("held_out", {}).get("value"),
                "diversity (dB)": point["diversity"],
            }
            row = {"reward": f"trained with {result['reward']}", "seed": result["seed"], "round": point["round"]}
            rows += [row | {"measure": name, "value": x} for name, x in measures.items() if x is not None]
    return pd.DataFrame(rows)


def picture(data: pd.DataFrame) -> str:
    """As SVG: a column for each reward, a row for each measure; each seed is a thin line, their mean a thick one."""
    line = {"type": "line", "color": "#0072b2"}
    x = {"field": "round", "type": "quantitative", "title": "rounds"}
    y: dict[str, Any] = {"type": "quantitative", "title": None, "scale": {"zero": False}}
    rows = []
    for measure in dict.fromkeys(data["measure"]):
        layer = [
            {
                "mark": line | {"strokeWidth": 1, "opacity": 0.35},
                "encoding": {"x": x, "y": y | {"field": "value"}, "detail": {"field": "seed", "type": "nominal"}},
            },
            {"mark": line | {"strokeWidth": 3}, "encoding": {"x": x, "y": y | {"field": "value", "aggregate": "mean"}}},
        ]
        header = {"title": None} | ({} if rows else {"header": {"labelFontSize": 13}})
        header |= {"header": {"labels": False}} if rows else {}
        rows.append(
            {
                "title": {"text": measure, "anchor": "start"},
                "data": {"values": data[data["measure"] == measure].to_dict("records")},
                "facet": {"column": {"field": "reward", "type": "nominal"} | header},
                "spec": {"width": 300, "height": 130, "layer": layer},
                "resolve": {"scale": {"y": "independent" if measure == REWARD else "shared"}},  # rewards differ in unit
            }
        )
    spec = {"$schema": "https://vega.github.io/schema/vega-lite/v5.json", "vconcat": rows}
    return vl_convert.vegalite_to_svg(spec | {"config": {"background": "white"}})


def main() -> None:
    parser = parser_of(__doc__, SEEDS, RESULT)
    parser.add_argument("--plot", type=Path, default=PLOT, help="the picture to write")
    options = parser.parse_args()
    results = run(jobs_of(options.seeds, changes_of(options.set)), options.results, options.jobs)
    data = curves(results)
    write_text(options.plot, picture(data))
    means = data.pivot_table("value", ["reward", "round"], "measure", sort=False)
    print(f"\nmean over the seeds {', '.join(map(str, options.seeds))}\n\n{means.round(3).to_string()}")


if __name__ == "__main__":
    main()
