"""Estimates with confidence intervals, as functions of arrays of scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A number, its confidence interval, and the number of clips behind it."""

    value: float
    low: float
    high: float
    clips: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def signed(self) -> str:
        """The same with signs, for a difference."""
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"

    def as_dict(self, name: str) -> dict[str, float]:
        """Flat, for a metrics file: `name`, `name_low` and `name_high`."""
        return {
            name: round(self.value, 4),
            f"{name}_low": round(self.low, 4),
            f"{name}_high": round(self.high, 4),
        }


def proportion(successes: int, count: int, confidence: float) -> Estimate:
    """A proportion with its Wilson score interval (Wilson, 1927)."""
    interval = stats.binomtest(successes, count).proportion_ci(confidence, method="wilson")
    return Estimate(successes / count, float(interval.low), float(interval.high), count)


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
    """

    def of_means(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        return statistic(*(sample.mean(axis) for sample in samples))

    found = stats.bootstrap(
        columns, of_means, paired=True, vectorized=True, n_resamples=resamples, confidence_level=confidence,
        method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = found.confidence_interval
    return Estimate(float(of_means(*columns)), float(low), float(high), len(columns[0]))
