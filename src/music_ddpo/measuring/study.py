"""The scores of a study, and the estimates that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from music_ddpo.core.checked_tables import Number, Text, read_table, require_equal
from music_ddpo.core.errors import UserError
from music_ddpo.core.files import AGAIN
from music_ddpo.core.params import EvaluationParams
from music_ddpo.core.prompts import QUADRANTS
from music_ddpo.measuring.statistics import Estimate, bootstrap, paired_change, proportion


class Study:
    """The scores of the untouched model's clips and of each adapter's.

    Parameters
    ----------
    original, trained
        Tables of `judging.judge`; `trained` by the name of the adapter. Row i of each was generated from the same
        noise.
    rewards
        The rewards that each adapter was trained with: its own, or the parts of a mixture.
    reference
        Scores of real recordings, {judge: {instrument: {emotion: headline}}}; may be empty.
    """

    def __init__(
        self,
        original: pd.DataFrame,
        trained: Mapping[str, pd.DataFrame],
        rewards: Mapping[str, Sequence[str]],
        reference: dict,
        settings: EvaluationParams,
        seed: int,
    ):
        self.original = original
        self.trained = trained
        self.rewards = rewards
        self.reference = reference
        self.settings = settings
        self.seed = seed
        names = [column.removesuffix("_headline") for column in original if column.endswith("_headline")]
        self.judges: dict[str, str] = {name: original[f"{name}_headline"].iloc[0] for name in names}
        self.emotions: list[str] = list(dict.fromkeys(original["emotion"]))
        self.estimate = cache(self.estimate)  # type: ignore[method-assign]
        self.gain = cache(self.gain)  # type: ignore[method-assign]
        self.gap_closed = cache(self.gap_closed)  # type: ignore[method-assign]

    def table(self, adapter: str | None) -> pd.DataFrame:
        """The scores of an adapter's clips (None: the untouched model's)."""
        return self.original if adapter is None else self.trained[adapter]

    def estimate(self, judge: str, adapter: str | None, emotion: str | None = None) -> Estimate:
        """A judge's headline number for an adapter (None: the untouched model), of all clips or of one emotion's."""
        values = self._values(self.table(adapter), judge, emotion)
        if self.judges[judge] == "accuracy":
            return proportion(int(values.sum()), len(values), self.settings.confidence)
        return self._bootstrap((values,), lambda mean: mean)

    def gain(self, judge: str, adapter: str, emotion: str | None = None) -> Estimate:
        """Trained minus original: the paired difference of a judge's headline number."""
        before, after = self.paired(judge, adapter, emotion)
        if self.judges[judge] == "accuracy":
            return paired_change(before, after, self.settings.confidence)
        return self._bootstrap((before, after), lambda before, after: after - before)

    def real(self, judge: str, emotion: str | None = None) -> float | None:
        """The headline number of real recordings with these emotions and instruments; None if not all are known.

        Of a judge of accuracy it is the ceiling: how often it is right on real recordings.
        """
        scores = self.reference.get(judge, {})
        rows = self.original if emotion is None else self.original[self.original["emotion"] == emotion]
        pairs = zip(rows["instrument"], rows["emotion"], strict=True)
        found = [scores.get(instrument, {}).get(emotion) for instrument, emotion in pairs]
        return None if None in found else float(np.mean(found))

    def gap_closed(self, judge: str, adapter: str) -> Estimate | None:
        """The gain as a share of the gap between the untouched model and real recordings.

        None if there are no recordings, or if the gap is not significant.
        """
        real = self.real(judge)
        if real is None or not real > self.estimate(judge, None).high:  # without an interval, nothing is significant
            return None

        def share(before: np.ndarray, after: np.ndarray) -> np.ndarray:
            return (after - before) / np.maximum(real - before, 1e-9)

        return self._bootstrap(self.paired(judge, adapter, None), share)

    def trained_with(self) -> list[tuple[str, list[str]]]:
        """Each adapter with the rewards that it was trained with."""
        return [(adapter, list(self.rewards[adapter])) for adapter in self.trained]

    def instrument(self, judge: str, adapter: str | None) -> Estimate | None:
        """Share of clips in which a judge hears the instrument of the prompt; None if it does not listen for it."""
        table, column = self.table(adapter), f"{judge}_instrument"
        if column not in table:
            return None
        return proportion(int(table[column].sum()), len(table), self.settings.confidence)

    def instrument_change(self, judge: str, adapter: str) -> Estimate | None:
        """The change of that share in the same clips; None if the judge does not listen for it."""
        before, after = (self.table(model).get(f"{judge}_instrument") for model in (None, adapter))
        if before is None or after is None:
            return None
        return paired_change(before.to_numpy(float), after.to_numpy(float), self.settings.confidence)

    def confusion(self, judge: str, adapter: str | None) -> pd.DataFrame | None:
        """For each clip the quadrant of the prompt and the one that the judge hears; None if it predicts none."""
        table = self.table(adapter)
        if f"{judge}_predicted" not in table:
            return None
        return pd.DataFrame({"asked": table["quadrant"], "heard": table[f"{judge}_predicted"]})

    def _bootstrap(self, columns: tuple[np.ndarray, ...], statistic) -> Estimate:
        return bootstrap(columns, statistic, self.settings.confidence, self.settings.bootstrap, self.seed)

    def _values(self, table: pd.DataFrame, judge: str, emotion: str | None) -> np.ndarray:
        column = "correct" if self.judges[judge] == "accuracy" else "value"
        rows = table if emotion is None else table[table["emotion"] == emotion]
        return rows[f"{judge}_{column}"].to_numpy(float)

    def paired(self, judge: str, adapter: str, emotion: str | None) -> tuple[np.ndarray, np.ndarray]:
        """What a judge's headline number is the mean of, for each clip [clips]: original and trained."""
        before, after = (self._values(self.table(a), judge, emotion) for a in (None, adapter))
        return before, after


def read_scores(
    path: Path | str, each: int, original: pd.DataFrame | None = None, source: Path | str = ""
) -> pd.DataFrame:
    """A table of `judging.judge`, checked.

    Parameters
    ----------
    each
        Clips of each emotion that it must have.
    original, source
        For an adapter's clips, the table of the original's and its file: clips and judges must be the same.

    Raises
    ------
    UserError
        If it is missing or damaged; names the column and the row.
    """
    clip: dict[str, Text | Number] = {"clip": Text(), "emotion": Text(), "instrument": Text()}
    clip["quadrant"] = Text(QUADRANTS)
    named = read_table(path, clip) if original is None else original
    columns = dict(clip)
    for name in map(str, named):
        judge, _, kind = name.rpartition("_")
        if kind == "headline":
            columns |= {name: Text(named[name][:1].tolist()), f"{judge}_value": Number()}
            if named[name][0] == "accuracy":
                columns[f"{judge}_correct"] = Number((0, 1))
        elif kind in ("correct", "instrument") and judge:
            columns[name] = Number((0, 1))
        elif kind == "predicted":
            columns[name] = Text((*QUADRANTS, "none"))
    table = read_table(path, columns)
    counts = set(table["emotion"].value_counts())
    if len(columns) == len(clip) or counts != {each} or table["clip"].duplicated().any():
        raise UserError(
            f"{path}: is damaged: it must have the scores of at least one judge for {each} different clips of each "
            f"emotion; {AGAIN}."
        )
    if original is not None:
        require_equal(path, table, original[list(clip)], source)
    return table
