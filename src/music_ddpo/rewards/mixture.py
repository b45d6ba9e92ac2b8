"""A weighted sum of several rewards, which trains one adapter. params.yaml defines it under `mixtures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from music_ddpo.core.prompts import Prompt
from music_ddpo.rewards.base import Judgement, Reward


class Mixture(Reward):
    """The weighted mean of its parts' scores, each normalised to [0, 1] by the range that the part declares.

    A value v becomes (v - lowest) / (highest - lowest), and a margin m, which is at most 0, becomes
    1 + m / (highest - lowest). So a clip always gets the same score, whatever else is in its round. DDPO divides by the
    deviation of the sum, so only the ratios of the weights matter.

    Parameters
    ----------
    name
        Its name in params.yaml.
    parts
        Each reward with its weight, which is positive.
    """

    headline = "value"
    lowest: ClassVar[float] = 0.0
    highest: ClassVar[float] = 1.0
    lowest_margin = 0.0

    def __init__(self, name: str, parts: Sequence[tuple[Reward, float]]):
        self.name = name  # type: ignore[misc]  # each mixture has its own
        self.parts = parts
        self.forms = tuple(  # type: ignore[misc]
            form for form in parts[0][0].forms if all(form in part.forms for part, _ in parts)
        )

    def judge(self, waveforms: torch.Tensor, sample_rate: int, prompts: Sequence[Prompt]) -> Judgement:
        """Judges waveforms [batch, samples] with each part."""
        judged = [(part, weight, part.judge(waveforms, sample_rate, prompts)) for part, weight in self.parts]
        for part, _, judgement in judged:
            part.check(judgement)
        total = sum(weight for _, weight in self.parts)

        def mean(normalised: Mapping[str, torch.Tensor]) -> torch.Tensor:
            return sum(weight * normalised[part.name] for part, weight, _ in judged) / total  # type: ignore[return-value]

        return Judgement(
            value=mean({p.name: (j.value.cpu() - p.lowest) / (p.highest - p.lowest) for p, _, j in judged}),
            margin=mean({p.name: 1 + j.reward("margin").cpu() / (p.highest - p.lowest) for p, _, j in judged})
            if "margin" in self.forms
            else None,
            correct=mean({p.name: j.reward("label").cpu() for p, _, j in judged}) if "label" in self.forms else None,
        )
