"""What is kept of a finished run in paper/runs/: its settings, its reward curve, and the scores of each clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from music_ddpo.core.files import read_json, write_json
from music_ddpo.core.params import EvaluationParams
from music_ddpo.measuring.experiments import Experiment
from music_ddpo.measuring.study import Study

CLIP = ("emotion", "instrument", "quadrant")
SCORES = ("value", "correct", "instrument")
ELSEWHERE = ("auto", "weights", "compute")  # groups that are not kept, but for the precision


def write(path: Path, experiment: Experiment, changes: dict[str, Any]) -> None:
    """Writes the only adapter's results of an experiment.

    Parameters
    ----------
    changes
        Of params.yaml, and what else the results depend on.
    """
    (adapter,) = experiment.study.trained
    kept = {key: value for key, value in experiment.params.items() if key not in ELSEWHERE}
    study = experiment.study
    write_json(
        path,
        {
            "changes": changes,
            "params": kept | {"compute": {"precision": experiment.params["compute"]["precision"]}},
            "seed": experiment.seed,
            "adapter": adapter,
            "parts": list(study.rewards[adapter]),
            "curve": [round(x, 4) for x in experiment.curves[adapter]],
            "judges": study.judges,
            "clips": {name: study.original[name].tolist() for name in CLIP},
            "original": _scores(study.original, study.judges),
            "trained": _scores(study.trained[adapter], study.judges),
        },
    )


def is_current(path: Path, params: dict[str, Any], changes: dict[str, Any]) -> bool:
    """Whether a file has the results of these params and changes.

    Keys that params.yaml did not have then, or has no more, are not compared, and other code is not noticed: remove the
    file if that matters.
    """
    if not path.is_file():
        return False
    content = read_json(path)
    return content["changes"] == changes and same(content["params"], params)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the keys that both params have have the same values; what changes rounding only is not compared."""
    for key in (one.keys() & other.keys()) - {"auto", "weights", "device", "processes", "batch", "decode_batch"}:
        first, second = one[key], other[key]
        both = isinstance(first, dict) and isinstance(second, dict)
        if not (same(first, second) if both else first == second):
            return False
    return True


def read(path: Path) -> Experiment:
    """The experiment of a file that `write` has written; only the columns that it keeps are in its tables.

    With the label as the reward, the headline of that reward is its accuracy: that is what was trained.
    """
    content = read_json(path)
    adapter, params = content["adapter"], content["params"]
    judges = content["judges"] | ({adapter: "accuracy"} if params["reward_form"] == "label" else {})
    clips = {**content["clips"], **{f"{name}_headline": kind for name, kind in judges.items()}}
    original, trained = (pd.DataFrame({**clips, **content[which]}) for which in ("original", "trained"))
    evaluation = EvaluationParams.model_construct(**params["evaluation"])
    study = Study(original, {adapter: trained}, {adapter: content["parts"]}, {}, evaluation, content["seed"])
    return Experiment(path.stem, params, content["seed"], study, {adapter: content["curve"]})


def _scores(table: pd.DataFrame, judges: dict[str, str]) -> dict[str, list[float]]:
    columns = [f"{judge}_{score}" for judge in judges for score in SCORES]
    return {
        name: [int(x) if x == int(x) else round(float(x), 3) for x in table[name]] for name in columns if name in table
    }
