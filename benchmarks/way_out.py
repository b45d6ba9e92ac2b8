"""Which settings raise the emotion, and not only the reward: python benchmarks/way_out.py [SETTING...] --jobs 2.

Trains an adapter with each setting and seed, all with the same rounds and trajectories, and judges its clips. A reward
that is exploited rises while the judges that no adapter is trained with do not: `listener`, which stands for people,
and `held_out`. An interrupted run goes on where it was. A training takes minutes: without names, all settings do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import yaml
from scipy import stats

from trials import PROJECT, Job, changes_of, parser_of, row, run

RESULT = PROJECT / "benchmarks" / "results" / "way-out.json"
SEEDS = (11, 12, 13)
UNTOUCHED = "untouched model"
ROUNDS = 8  # the same for all settings, but where the name says more
PLAIN = {"ddpo.rounds": ROUNDS, "ddpo.learning_rate": 0.015, "ddpo.kl": 0.0}
ONE, FOUR = PLAIN | {"emopia.members": 1}, PLAIN | {"emopia.members": 4}
MIXTURE = {"mixtures.both": {"clap": 1.0, "emopia": 1.0}}
MORE_CLAP = {"mixtures.both": {"clap": 2.0, "emopia": 1.0}}

# What is added to training with one member and with four. The clip range is 1e-3 and the rate 0.015 otherwise.
ADDED: dict[str, dict[str, Any]] = {
    "kl 0.03": {"ddpo.kl": 0.03},
    "kl 0.1": {"ddpo.kl": 0.1},
    "kl 1": {"ddpo.kl": 1.0},
    "group advantages": {"ddpo.advantages": "group"},
    "half the rate": {"ddpo.learning_rate": 0.0075},
    "clip 1e-4": {"ddpo.clip_range": 1e-4},
}

# What is added to four members and the penalty.
WITH_KL: dict[str, dict[str, Any]] = {
    "2 updates": {"ddpo.updates_per_round": 2},
    "half the rate": {"ddpo.learning_rate": 0.0075},
    "half the rate, 11 rounds": {"ddpo.learning_rate": 0.0075, "ddpo.rounds": 11},
    "clip 3e-4": {"ddpo.clip_range": 3e-4},
    "clip 3e-4, 11 rounds": {"ddpo.clip_range": 3e-4, "ddpo.rounds": 11},
}

# name: (reward, changes of params.yaml)
SETTINGS: dict[str, tuple[str | None, dict[str, Any]]] = {
    UNTOUCHED: (None, ONE),
    "1 member": ("emopia", ONE),
    "2 members": ("emopia", PLAIN | {"emopia.members": 2}),
    "4 members": ("emopia", FOUR),
    "clap": ("clap", ONE),
    "clap + 1 member": ("both", ONE | MIXTURE),
    "clap + 4 members": ("both", FOUR | MIXTURE),
    "2 clap + 4 members": ("both", FOUR | MORE_CLAP),
    **{f"1 member, {name}": ("emopia", ONE | added) for name, added in ADDED.items()},
    **{f"4 members, {name}": ("emopia", FOUR | added) for name, added in ADDED.items()},
    **{f"clap + 4 members, {name}": ("both", FOUR | MIXTURE | added) for name, added in ADDED.items()},
    "4 members, 11 rounds": ("emopia", FOUR | {"ddpo.rounds": 11}),  # the UNet calls of 8 rounds with the penalty
    "4 members, kl 0.03, 11 rounds": ("emopia", FOUR | {"ddpo.kl": 0.03, "ddpo.rounds": 11}),
    "4 members, kl 0.06, 12 rounds": ("emopia", FOUR | {"ddpo.kl": 0.06, "ddpo.rounds": 12}),
    "4 members, kl 0.1, 12 rounds": ("emopia", FOUR | {"ddpo.kl": 0.1, "ddpo.rounds": 12}),
    **{f"4 members, kl 0.03, {name}": ("emopia", FOUR | {"ddpo.kl": 0.03} | added) for name, added in WITH_KL.items()},
}


def jobs_of(names: Sequence[str], seeds: Sequence[int], changes: dict[str, Any]) -> list[Job]:
    """A job for each setting and seed, with further changes of params.yaml."""
    return [Job(name, SETTINGS[name][0], seed, SETTINGS[name][1] | changes) for name in names for seed in seeds]


def own_accuracy(result: dict[str, Any], mixtures: dict[str, dict[str, float]]) -> float | None:
    """The accuracy by the reward that the adapter was trained with; of a mixture, the mean over its parts."""
    if result["reward"] is None:
        return None
    parts = mixtures.get(result["reward"], [result["reward"]])
    return float(np.mean([result["judges"][part]["accuracy"] for part in parts]))


def interval(values: Sequence[float]) -> str:
    """The mean over seeds, with the 95% interval of Student's t: the seeds are few, and their noise about normal."""
    mean = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return f"{mean:.3f} [?]"
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


def table(results: Sequence[dict[str, Any]], mixtures: dict[str, dict[str, float]]) -> str:
    """One row for each setting, in their order: means over its seeds, in Markdown; "-" for what was not judged."""
    judged = [result["judges"] for result in results if "listener" in result["judges"]]
    emotions = list(judged[0]["listener"]["by_emotion"]) if judged else []
    head = ["setting", "own accuracy", "listener accuracy", "each seed", *emotions, "instrument", "held_out"]
    head += ["diversity (dB)", "UNet calls"]
    lines = [row(head), row(["---"] * len(head))]
    for name in dict.fromkeys(result["setting"] for result in results):
        group = [result for result in results if result["setting"] == name]

        def mean(values: Sequence[float | None], digits: int = 3) -> str:
            known = [value for value in values if value is not None]
            return f"{np.mean(known):.{digits}f}" if known else "-"

        heard = [r["judges"]["listener"] for r in group if "listener" in r["judges"]]
        listener = [h["accuracy"] for h in heard]
        cells = [name, mean([own_accuracy(r, mixtures) for r in group])]
        cells += [interval(listener), ", ".join(f"{x:.2f}" for x in listener)] if listener else ["-", "-"]
        cells += [mean([h["by_emotion"][emotion] for h in heard], 2) for emotion in emotions]
        cells += [mean([h["instrument"] for h in heard], 2)]
        cells += [mean([r["judges"].get("held_out", {}).get("value") for r in group])]
        cells += [mean([r["diversity"] for r in group], 2), mean([r.get("unet_calls") for r in group], 0)]
        lines.append(row(cells))
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = parser_of(__doc__, SEEDS, RESULT)
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=", ".join(map(repr, SETTINGS)))
    options = parser.parse_args()
    unknown = [name for name in options.settings if name not in SETTINGS]
    if unknown:
        parser.error(f"{unknown[0]!r} is not one of {', '.join(map(repr, SETTINGS))}")
    names = options.settings or list(SETTINGS)
    results = run(jobs_of(names, options.seeds, changes_of(options.set)), options.results, options.jobs)
    mixtures = yaml.safe_load((PROJECT / "params.yaml").read_text())["mixtures"] | {"both": MIXTURE["mixtures.both"]}
    print("\n" + table(results, mixtures))


if __name__ == "__main__":
    main()
