"""The measuring: accuracies and similarities with their intervals, what training changed, and the tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm

from music_ddpo.params import EvaluationParams
from music_ddpo.prompts import QUADRANTS
from music_ddpo.randomness import generator as random_generator
from music_ddpo.rewards.base import reward_class
from music_ddpo.scores import judges


@dataclass(frozen=True)
class Estimate:
    """A number, its confidence interval, and how many clips it rests on."""

    value: float
    low: float
    high: float
    clips: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def signed(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"

    def as_dict(self, name: str) -> dict[str, float]:
        """Flat, for a metrics file: `name`, `name_low`, `name_high` and `clips`."""
        numbers = {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}
        return {key: round(x, 4) for key, x in numbers.items()} | {"clips": self.clips}


def wilson(successes: int, count: int, confidence: float) -> Estimate:
    """A proportion with its Wilson score interval (Wilson, 1927)."""
    z = norm.ppf((1 + confidence) / 2)
    share = successes / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return Estimate(share, float(max(0.0, centre - half)), float(min(1.0, centre + half)), count)


def bootstrap(
    columns: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], settings: EvaluationParams, seed: int
) -> Estimate:
    """A statistic with its percentile bootstrap interval (Efron, 1979).

    Parameters
    ----------
    columns
        One row a clip, float [clips, columns]. Clips are resampled whole, so columns stay paired.
    statistic
        Of the columns' means: takes [..., columns], returns [...].
    """
    count = len(columns)
    rng = np.random.default_rng(random_generator(seed, "bootstrap").initial_seed() % 2**63)
    means = np.stack([columns[rng.integers(count, size=count)].mean(0) for _ in range(settings.bootstrap)])
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(statistic(means), [tail, 1 - tail])
    return Estimate(float(statistic(columns.mean(0))), float(low), float(high), count)


class Study:
    """The scores of the untouched model's clips and of each adapter's, and what they say.

    Parameters
    ----------
    original, trained
        Tables that `scores.score` made; `trained` by the reward that the adapter was trained with. Row i of each
        was generated from the same noise.
    reference
        Scores of real recordings, {judge: {instrument: {emotion: headline}}}; may be empty.
    """

    def __init__(
        self,
        original: pd.DataFrame,
        trained: dict[str, pd.DataFrame],
        reference: dict,
        settings: EvaluationParams,
        seed: int,
    ):
        self.original = original
        self.trained = trained
        self.reference = reference
        self.settings = settings
        self.seed = seed
        self.judges = {name: reward_class(name).headline for name in judges(original)}
        self.emotions = list(dict.fromkeys(original["emotion"]))

    def table(self, adapter: str | None) -> pd.DataFrame:
        return self.original if adapter is None else self.trained[adapter]

    def estimate(self, judge: str, adapter: str | None, emotion: str | None = None) -> Estimate:
        """A judge's headline number for an adapter (None: the untouched model), over all clips or one emotion's."""
        values = self._values(self.table(adapter), judge, emotion)
        if self.judges[judge] == "accuracy":
            return wilson(int(values.sum()), len(values), self.settings.confidence)
        return bootstrap(values[:, None], lambda m: m[..., 0], self.settings, self.seed)

    def gain(self, judge: str, adapter: str, emotion: str | None = None) -> Estimate:
        """Trained less original, clip by clip: the paired difference of a judge's headline number."""
        return bootstrap(
            self._paired(judge, adapter, emotion), lambda m: m[..., 1] - m[..., 0], self.settings, self.seed
        )

    def real(self, judge: str) -> float | None:
        """The headline number of real recordings of these emotions and instruments, if all were measured."""
        scores = self.reference.get(judge, {})
        pairs = zip(self.original["instrument"], self.original["emotion"], strict=True)
        found = [scores.get(instrument, {}).get(emotion) for instrument, emotion in pairs]
        return None if None in found else float(np.mean(found))

    def gap_closed(self, judge: str, adapter: str) -> Estimate | None:
        """The share of the way from the untouched model to real recordings that training went.

        None where there are no recordings to compare with, or no gap beyond chance: a share of nothing is nothing.
        """
        real = self.real(judge)
        if real is None or real <= self.estimate(judge, None).high:
            return None

        def share(means: np.ndarray) -> np.ndarray:
            return (means[..., 1] - means[..., 0]) / np.maximum(real - means[..., 0], 1e-9)

        return bootstrap(self._paired(judge, adapter, None), share, self.settings, self.seed)

    def confusion(self, judge: str, adapter: str | None) -> pd.DataFrame:
        """One row a clip: the quadrant that was asked for, and the one that the judge hears."""
        table = self.table(adapter)
        return pd.DataFrame({"asked": table["quadrant"], "heard": table[f"{judge}_predicted"]})

    def _values(self, table: pd.DataFrame, judge: str, emotion: str | None) -> np.ndarray:
        column = "correct" if self.judges[judge] == "accuracy" else "similarity"
        rows = table if emotion is None else table[table["emotion"] == emotion]
        return rows[f"{judge}_{column}"].to_numpy(float)

    def _paired(self, judge: str, adapter: str, emotion: str | None) -> np.ndarray:
        return np.stack([self._values(self.table(a), judge, emotion) for a in (None, adapter)], 1)


def metrics(study: Study) -> dict:
    """Everything that the tables say, for metrics/accuracy.json."""
    result: dict = {}
    for judge, headline in study.judges.items():
        for adapter in (None, *study.trained):
            entry = study.estimate(judge, adapter).as_dict(headline)
            if adapter is not None:
                entry |= {k: v for k, v in study.gain(judge, adapter).as_dict("gain").items() if k != "clips"}
                closed = study.gap_closed(judge, adapter)
                if closed is not None:
                    entry |= {k: v for k, v in closed.as_dict("gap_closed").items() if k != "clips"}
            for emotion in study.emotions:
                entry[emotion] = study.estimate(judge, adapter, emotion).as_dict(headline)
                if adapter is not None:
                    gain = study.gain(judge, adapter, emotion).as_dict("gain")
                    entry[emotion] |= {k: v for k, v in gain.items() if k != "clips"}
            result.setdefault(f"judged_by_{judge}", {})[_name(adapter)] = entry
        if study.real(judge) is not None:
            result[f"judged_by_{judge}"]["real_recordings"] = {headline: round(study.real(judge), 4)}
    return result


def markdown(study: Study) -> str:
    """The tables, in words that a newcomer understands."""
    level = f"{study.settings.confidence:.0%}"
    count = len(study.original)
    each = count // len(study.emotions)
    adapters = list(study.trained)
    lines = [
        "# What training did",
        "",
        f"The untouched model and each adapter played {count} clips from the same noise, {each} for each emotion.",
        f"Brackets hold {level} intervals; a change whose interval leaves out 0 is more than chance.",
    ]
    for judge in (j for j, headline in study.judges.items() if headline == "accuracy"):
        lines += [
            "",
            f"## Table 1: how often {judge} hears the emotion that was asked for",
            "",
            _row(["emotion", "original", *(f"trained with {a}" for a in adapters), "clips"]),
            _row(["---"] * (len(adapters) + 3)),
        ]
        for emotion in (*study.emotions, None):
            cells = [study.estimate(judge, a, emotion) for a in (None, *adapters)]
            lines.append(_row([emotion or "**all**", *map(str, cells), str(cells[0].clips)]))
    lines += [
        "",
        "## Table 2: did the adapter raise the reward it was trained with?",
        "",
        _row(
            ["trained with", "measured", "original", "trained", "change", "real recordings", "share of the gap closed"]
        ),
        _row(["---"] * 7),
    ]
    for a in adapters:
        real, closed = study.real(a), study.gap_closed(a, a)
        cells = [study.judges[a], study.estimate(a, None), study.estimate(a, a), study.gain(a, a).signed()]
        cells += ["" if real is None else f"{real:.2f}", "" if closed is None else closed]
        lines.append(_row([a, *map(str, cells)]))
    lines += [
        "",
        "## Transfer: every adapter judged by every reward (change against the untouched model)",
        "",
        "The held-out judge is the CLAP inside the generator. Nothing is trained with it: if it falls while a reward",
        "rises, the adapter has learnt to please the reward, not to make better music.",
        "",
        _row(["trained with", *(f"{j} {headline}" for j, headline in study.judges.items())]),
        _row(["---"] * (len(study.judges) + 1)),
    ]
    lines += [_row([a, *(study.gain(j, a).signed() for j in study.judges)]) for a in adapters]
    return "\n".join(lines) + "\n"


def plots(study: Study) -> dict[str, pd.DataFrame]:
    """The data of the plots, by file name below plots/."""
    bars, transfer = [], []
    for adapter in (None, *study.trained):
        for judge, headline in study.judges.items():
            for emotion in (*study.emotions, None):
                e = study.estimate(judge, adapter, emotion)
                row = {
                    "model": _name(adapter).replace("_", " "),
                    "judge": f"{judge} {headline}",
                    "emotion": emotion or "all",
                }
                bars.append(row | {"value": round(e.value, 4), "low": round(e.low, 4), "high": round(e.high, 4)})
            if adapter is not None:
                gain = study.gain(judge, adapter)
                row = {"trained with": adapter, "judged by": f"{judge} {headline}", "change": round(gain.value, 4)}
                transfer.append(row | {"label": gain.signed()})
    result = {"accuracy.csv": pd.DataFrame(bars), "transfer.csv": pd.DataFrame(transfer)}
    for adapter in (None, *study.trained):
        for judge in study.judges:
            result[f"confusion/{_name(adapter)}-by-{judge}.csv"] = _in_order(study.confusion(judge, adapter))
    return result


def _in_order(confusion: pd.DataFrame) -> pd.DataFrame:
    order = {q: i for i, q in enumerate((*QUADRANTS, "none"))}
    return confusion.sort_values(["asked", "heard"], key=lambda column: column.map(order), ignore_index=True)


def _name(adapter: str | None) -> str:
    return "original" if adapter is None else f"trained_with_{adapter}"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
