"""The study and its features, from the files that earlier stages wrote in the project's folder."""

from __future__ import annotations

from pathlib import Path

from music_ddpo.core.files import read_json, read_seed
from music_ddpo.core.params import Params
from music_ddpo.measuring.feature_study import FeatureStudy, read_features
from music_ddpo.measuring.study import Study, read_scores

Reference = dict[str, dict[str, dict[str, float]]]


def read_study(params: Params) -> Study:
    """The scores of all clips; `UserError` if a file is missing or damaged."""
    baseline, each = Path("metrics/clips/baseline.csv"), params.evaluation.clips_per_emotion
    original = read_scores(baseline, each)
    return Study(
        original=original,
        trained={r: read_scores(f"metrics/clips/{r}.csv", each, original, baseline) for r in params.rewards},
        rewards={reward: list(params.mixtures.get(reward, [reward])) for reward in params.rewards},
        reference=read_json("models/reference.json", Reference),
        settings=params.evaluation,
        seed=read_seed(),
    )


def read_music(study: Study) -> FeatureStudy:
    """The features of the clips of a study; `UserError` if a file is missing or damaged."""
    described = {
        name: read_features(f"metrics/features/{name}.csv", table, f"metrics/clips/{name}.csv")
        for name, table in {"baseline": study.original, **study.trained}.items()
    }
    return FeatureStudy(
        original=described.pop("baseline"),
        trained=described,
        reference=read_json("models/features.json", Reference),
        settings=study.settings,
        seed=study.seed,
    )
