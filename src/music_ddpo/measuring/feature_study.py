"""The features of a study's clips, and the estimates that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from music_ddpo.core.checked_tables import Number, Text, read_table, require_equal
from music_ddpo.core.params import EvaluationParams
from music_ddpo.measuring.diversity import DISTANCES, diversity
from music_ddpo.measuring.features import FEATURES
from music_ddpo.measuring.statistics import Estimate, bootstrap

CLIP = ["clip", "emotion", "instrument", "quadrant"]  # the columns of a clip in the tables of scores and features


class FeatureStudy:
    """The features of the untouched model's clips and of each adapter's.

    Parameters
    ----------
    original, trained
        Tables of `describing.describe`; `trained` by the name of the adapter. Row i of each was generated from the same
        noise.
    reference
        Means of real recordings, {instrument: {emotion: {feature: mean}}}; may be empty.
    """

    def __init__(
        self,
        original: pd.DataFrame,
        trained: Mapping[str, pd.DataFrame],
        reference: dict[str, dict[str, dict[str, float]]],
        settings: EvaluationParams,
        seed: int,
    ):
        self.original = original
        self.trained = trained
        self.reference = reference
        self.settings = settings
        self.seed = seed
        self.emotions: list[str] = list(dict.fromkeys(original["emotion"]))
        self.estimate = cache(self.estimate)  # type: ignore[method-assign]
        self.change = cache(self.change)  # type: ignore[method-assign]

    def table(self, adapter: str | None) -> pd.DataFrame:
        """The features of an adapter's clips (None: the untouched model's)."""
        return self.original if adapter is None else self.trained[adapter]

    def estimate(self, feature: str, adapter: str | None, emotion: str) -> Estimate:
        """The mean of a feature, or a distance's diversity, of one emotion's clips with an adapter or without (None).

        Clips without this feature are left out; `Estimate.clips` says how many have it.
        """
        if feature in DISTANCES:
            return diversity([self._values(feature, adapter, *prompt) for prompt in self._prompts(emotion)],
                             self.settings.confidence)  # fmt: skip
        return self._bootstrap(self._values(feature, adapter, emotion))

    def change(self, feature: str, adapter: str, emotion: str) -> Estimate:
        """Trained minus original, in pairs; clips that lack the feature in either are left out."""
        if feature in DISTANCES:
            return diversity(
                [self._values(feature, adapter, *prompt) - self._values(feature, None, *prompt)
                 for prompt in self._prompts(emotion)], self.settings.confidence
            )  # fmt: skip
        return self._bootstrap(self._values(feature, adapter, emotion) - self._values(feature, None, emotion))

    def undefined(self, feature: str, adapter: str | None) -> int:
        """How many clips do not have a feature."""
        return int(self.table(adapter)[feature].isna().sum())

    def real(self, feature: str, emotion: str) -> float | None:
        """The mean of real recordings with this emotion and these instruments; None if not all are known."""
        played = self.original.loc[self.original["emotion"] == emotion, "instrument"]
        found = [self.reference.get(instrument, {}).get(emotion, {}).get(feature) for instrument in played]
        return None if None in found else float(np.mean(np.array(found, float)))

    def _prompts(self, emotion: str) -> list[tuple[str, str]]:
        """The prompts of an emotion, as (emotion, instrument)."""
        played = self.original.loc[self.original["emotion"] == emotion, "instrument"]
        return [(emotion, instrument) for instrument in dict.fromkeys(played)]

    def _values(self, feature: str, adapter: str | None, emotion: str, instrument: str | None = None) -> np.ndarray:
        table = self.table(adapter)
        rows = table["emotion"] == emotion
        if instrument is not None:
            rows &= table["instrument"] == instrument
        return table.loc[rows, feature].to_numpy(float)

    def _bootstrap(self, values: np.ndarray) -> Estimate:
        """The mean of the values that are defined."""
        known = values[~np.isnan(values)]
        if len(known) < 2:
            return Estimate(float(known[0]) if len(known) else np.nan, np.nan, np.nan, len(known))
        return bootstrap((known,), lambda mean: mean, self.settings.confidence, self.settings.bootstrap, self.seed)


def read_features(path: Path | str, scores: pd.DataFrame, source: Path | str) -> pd.DataFrame:
    """A table of `describing.describe`, checked.

    Parameters
    ----------
    scores, source
        The scores of the same clips and their file: the clips must be the same.

    Raises
    ------
    UserError
        If it is missing or damaged; names the column and the row.
    """
    columns: dict[str, Text | Number] = {name: Text() for name in CLIP}
    table = read_table(path, columns | {name: Number(gaps=True) for name in (*FEATURES, *DISTANCES)})
    require_equal(path, table, scores[CLIP], source)
    return table
