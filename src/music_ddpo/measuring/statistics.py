"""Estimates with confidence intervals, as functions of arrays of scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A number, its confidence interval, and the number of clips behind it.

    The bounds are NaN if all clips have the same value, so that no interval can be computed.
    """

    value: float
    low: float
    high: float
    clips: int

    def __str__(self) -> str:
        return f"{self.value:.2f} " + ("[?]" if math.isnan(self.low) else f"[{self.low:.2f}, {self.high:.2f}]")

    def signed(self) -> str:
        """The same with signs, for a difference."""
        return f"{self.value:+.2f} " + ("[?]" if math.isnan(self.low) else f"[{self.low:+.2f}, {self.high:+.2f}]")

    def as_dict(self, name: str) -> dict[str, float | None]:
        """Flat, for a metrics file: `name`, `name_low` and `name_high`; an unknown bound is None."""
        low, high = (None if math.isnan(x) else round(x, 4) for x in (self.low, self.high))
        return {name: round(self.value, 4), f"{name}_low": low, f"{name}_high": high}


def proportion(successes: int, count: int, confidence: float) -> Estimate:
    """A proportion with its Wilson score interval (Wilson, 1927)."""
    interval = stats.binomtest(successes, count).proportion_ci(confidence, method="wilson")
    return Estimate(successes / count, float(interval.low), float(interval.high), count)


def paired_change(before: np.ndarray, after: np.ndarray, confidence: float) -> Estimate:
    """The difference of two proportions of the same clips, with Tango's score interval.

    It inverts the score test (Tango, 1998, Statistics in Medicine 17:891), so it is right for few clips and at the
    borders: without a single change among n clips it is +- z^2 / (n + z^2), where a bootstrap has no width.

    Parameters
    ----------
    before, after
        0 or 1, [clips].
    """
    n, gained, lost = len(before), int((after > before).sum()), int((after < before).sum())
    z = stats.norm.isf((1 - confidence) / 2)

    def score(change: float) -> float:
        """The observed change minus `change`, in standard deviations under `change`."""
        # the most likely probability of losing, given the change: the root of a x^2 + b x + c
        a, b = 2 * n, (2 * n - gained + lost) * change - gained - lost
        c = -lost * change * (1 - change)
        losing = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = n * (2 * losing + change * (1 - change))
        difference = gained - lost - n * change
        return difference / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, difference)

    value = (gained - lost) / n

    def bound(end: float) -> float:
        """The change between `value` and `end` (-1 or 1) whose score is z; the end itself if there is none."""
        if value == end:
            return end
        inside, outside = value, end
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if abs(score(middle)) < z else (inside, middle)
        return inside

    return Estimate(value, bound(-1.0), bound(1.0), n)


def bootstrap(
    columns: tuple[np.ndarray, ...],
    statistic: Callable[..., np.ndarray],
    confidence: float,
    resamples: int,
    seed: int,
) -> Estimate:
    """A statistic with its percentile bootstrap interval (Efron, 1979).

    Parameters
    ----------
    columns
        Each float [clips]. Clips are resampled with all their columns, so the columns stay paired.
    statistic
        Of the columns' means: takes one array [...] per column, returns an array [...].

    Returns
    -------
    An estimate whose bounds are NaN if the statistic is the same in every resample.
    """

    def of_means(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return statistic(*(sample.mean(axis) for sample in samples))

    with np.errstate(all="ignore"):  # of the resamples, about a statistic without variance
        found = stats.bootstrap(
            columns, of_means, paired=True, vectorized=True, n_resamples=resamples, confidence_level=confidence,
            method="percentile", rng=np.random.default_rng(seed),
        )  # fmt: skip
    low, high = map(float, found.confidence_interval)
    if np.ptp(found.bootstrap_distribution) < 1e-12:
        low = high = math.nan
    return Estimate(float(of_means(*columns)), low, high, len(columns[0]))


def over_runs(
    runs: Sequence[tuple[np.ndarray, ...]],
    statistic: Callable[..., np.ndarray],
    confidence: float,
    resamples: int,
    seed: int,
) -> Estimate:
    """The mean over runs of a statistic, with its percentile interval over runs and clips.

    A two-stage bootstrap: runs are resampled first, then the clips of each drawn run. Of n runs n - 1 are drawn, so
    that the variance between few runs is not underestimated (Rao and Wu, 1988, JASA 83:231), and the interval is
    expanded by the ratio of Student's t with n - 1 degrees of freedom to the normal quantile (as in Hesterberg, 2015,
    The American Statistician 69:371). With a single run only its clips are resampled, and the interval says nothing of
    other seeds.

    Parameters
    ----------
    runs
        The columns of each run, each float [clips], which stay paired.
    statistic
        Of the means of a run's columns, as in `bootstrap`.
    """
    random = np.random.default_rng(seed)
    draws = max(1, len(runs) - 1)
    chosen = random.integers(len(runs), size=(resamples, draws))
    values = np.empty((resamples, draws))
    for run, columns in enumerate(runs):
        rows = np.nonzero(chosen == run)
        clips = random.integers(len(columns[0]), size=(len(rows[0]), len(columns[0])))
        values[rows] = statistic(*(column[clips].mean(1) for column in columns))
    means = values.mean(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    if np.ptp(means) < 1e-12:
        low = high = math.nan
    value = float(np.mean([statistic(*(column.mean() for column in columns)) for columns in runs]))
    if len(runs) > 1:
        expanded = stats.t.isf((1 - confidence) / 2, len(runs) - 1) / stats.norm.isf((1 - confidence) / 2)
        low, high = (value + expanded * (bound - value) for bound in (low, high))
    return Estimate(value, float(low), float(high), sum(len(columns[0]) for columns in runs))
