"""What is kept of a finished run in paper/runs/: its settings, its reward curve, and the scores of each clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from music_ddpo.core.files import read_json, write_json
from music_ddpo.core.params import Params
from music_ddpo.core.params_file import parse
from music_ddpo.measuring.experiments import Experiment
from music_ddpo.measuring.study import Study

CLIP = ("emotion", "instrument", "quadrant")
SCORES = ("value", "correct", "instrument")


def write(path: Path, experiment: Experiment, changes: dict[str, Any], seconds: float | None = None) -> None:
    """Writes the only adapter's results of an experiment."""
    (adapter,) = experiment.study.trained
    study = experiment.study
    params = experiment.params.model_dump(mode="json")
    write_json(
        path,
        {
            "changes": changes,
            "params": params,
            "seed": experiment.seed,
            "adapter": adapter,
            "seconds": seconds,
            "curve": [round(x, 4) for x in experiment.curves[adapter]],
            "judges": study.judges,
            "clips": {name: study.original[name].tolist() for name in CLIP},
            "original": _scores(study.original, study.judges),
            "trained": _scores(study.trained[adapter], study.judges),
        },
    )


def is_current(path: Path, params: Params, changes: dict[str, Any]) -> bool:
    """Whether a file has the results of these params and changes. Other code is not noticed: remove the file then."""
    if not path.is_file():
        return False
    content = read_json(path)
    return content["changes"] == changes and same(parse(content["params"], str(path)), params)


def same(one: Params, other: Params) -> bool:
    """Whether two params give the same results, apart from rounding."""
    first, second = (p.model_dump(mode="json", exclude={"compute", "auto", "weights"}) for p in (one, other))
    return first == second


def read(path: Path) -> Experiment:
    """The experiment of a file that `write` has written; only the columns that it keeps are in its tables."""
    content = read_json(path)
    params: Params = parse(content["params"], str(path))
    clips = {**content["clips"], **{f"{name}_headline": kind for name, kind in content["judges"].items()}}
    original, trained = (pd.DataFrame({**clips, **content[which]}) for which in ("original", "trained"))
    adapter = content["adapter"]
    study = Study(
        original=original,
        trained={adapter: trained},
        rewards={adapter: list(params.mixtures.get(adapter, [adapter]))},
        reference={},
        settings=params.evaluation,
        seed=content["seed"],
    )
    return Experiment(path.stem, params, content["seed"], study, {adapter: content["curve"]})


def _scores(table: pd.DataFrame, judges: dict[str, str]) -> dict[str, list[float]]:
    columns = [f"{judge}_{score}" for judge in judges for score in SCORES]
    return {
        name: [int(x) if x == int(x) else round(float(x), 3) for x in table[name]] for name in columns if name in table
    }
