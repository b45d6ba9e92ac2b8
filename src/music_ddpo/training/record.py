"""The record of a training: the reward curve and its summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from music_ddpo.core.prompts import Prompt
from music_ddpo.training.ddpo import Learnt


@dataclass
class Round:
    """One round of sample, score, learn: a row of the reward curve.

    Attributes
    ----------
    reward, reward_std, by_emotion
        Mean and standard deviation over all clips, and the mean for each emotion.
    noise
        Standard error of `reward`: how much it varies between rounds of an unchanged policy.
    unjudged
        Clips that could not be judged.
    clip_fraction, kl, gradient_norm, ratio_error, kl_to_base
        See `ddpo.Learnt`; of all processes.
    """

    round: int
    reward: float
    reward_std: float
    noise: float
    by_emotion: dict[str, float]
    unjudged: int
    clip_fraction: float
    kl: float
    gradient_norm: float
    ratio_error: float
    kl_to_base: float

    @classmethod
    def of(
        cls, round: int, rewards: torch.Tensor, judged: torch.Tensor, asked: Sequence[Prompt],
        learnt: Sequence[Learnt],
    ) -> Round:  # fmt: skip
        """Puts together the rewards of all clips, what was asked for, and what each process learnt."""
        emotions = [p.emotion for p in asked]
        texts = [p.text for p in asked]
        groups = [rewards[[x == text for x in texts]].double() for text in dict.fromkeys(texts)]
        variance = sum(len(g) * g.var().item() for g in groups if len(g) > 1)
        return cls(
            round=round,
            reward=rewards.mean().item(),
            reward_std=rewards.std(correction=0).item(),
            noise=variance**0.5 / len(rewards),
            by_emotion={e: rewards[[x == e for x in emotions]].mean().item() for e in dict.fromkeys(emotions)},
            unjudged=int((~judged).sum()),
            clip_fraction=sum(x.clip_fraction for x in learnt),
            kl=sum(x.kl for x in learnt),
            gradient_norm=learnt[0].gradient_norm,
            ratio_error=max(x.ratio_error for x in learnt),
            kl_to_base=sum(x.kl_to_base for x in learnt),
        )


def rise(rounds: Sequence[Round]) -> tuple[float, float]:
    """By how much the reward has risen from the first of these rounds to the last, and the standard error of that.

    The rise of a straight line that is fitted by least squares; its error follows from the noise of each round.
    """
    x = np.arange(len(rounds)) - (len(rounds) - 1) / 2
    weight = x * (len(rounds) - 1) / (x**2).sum()
    reward, noise = (np.array([getattr(r, name) for r in rounds]) for name in ("reward", "noise"))
    return float(weight @ reward), float(((weight * noise) ** 2).sum() ** 0.5)


def reward_curve(rounds: Sequence[Round]) -> pd.DataFrame:
    """One row for each round and series ("all", then each emotion), for "all" with a band of one deviation."""
    rows: list[dict[str, object]] = []
    for r in rounds:
        row = {"round": r.round + 1, "series": "all", "reward": r.reward}
        rows.append(row | {"low": r.reward - r.reward_std, "high": r.reward + r.reward_std})
        rows += [{"round": r.round + 1, "series": e, "reward": reward} for e, reward in r.by_emotion.items()]
    return pd.DataFrame(rows, columns=["round", "series", "reward", "low", "high"]).round(6)


def summary(rounds: Sequence[Round], seed: int) -> dict[str, float]:
    """The closing numbers of a training; `first` and `last` are means over a quarter of its rounds.

    With a KL penalty also the mean divergence of the last quarter.
    """
    quarter = max(1, len(rounds) // 4)

    def mean(name: str, part: Sequence[Round]) -> float:
        return round(sum(getattr(r, name) for r in part) / len(part), 6)

    numbers: dict[str, float] = {
        "reward_first": mean("reward", rounds[:quarter]),
        "reward_last": mean("reward", rounds[-quarter:]),
        "reward_std_last": mean("reward_std", rounds[-quarter:]),
        "clip_fraction": mean("clip_fraction", rounds),
        "approximate_kl": float(f"{sum(r.kl for r in rounds) / len(rounds):.4g}"),
        "gradient_norm": mean("gradient_norm", rounds),
        "ratio_error_at_first_update": max(r.ratio_error for r in rounds),
        "unjudged_clips": sum(r.unjudged for r in rounds),
        "seed": seed,
    }
    if any(r.kl_to_base for r in rounds):
        numbers["kl_to_base_last"] = float(f"{sum(r.kl_to_base for r in rounds[-quarter:]) / quarter:.4g}")
    return numbers
