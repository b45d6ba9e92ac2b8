"""The interface of a reward: it listens to clips and returns a number for each."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from music_ddpo.core.errors import UserError
from music_ddpo.core.params import Params
from music_ddpo.core.prompts import Prompt

SILENT = 1e-4  # a clip whose peak is below -80 dBFS is silent
CLIPPED = 0.05  # a clip with more than this share of its samples at full scale is clipped


@dataclass(frozen=True)
class Judgement:
    """The scores of a batch of clips.

    Attributes
    ----------
    value
        The dense reward; float32 [batch].
    margin
        The score of the true class minus the highest one (paper 5.1); float32 [batch], or None.
    predicted
        The quadrant that the judge hears, "Q1" to "Q4"; "" for a clip that cannot be judged. Or None.
    correct
        1 if the prediction is the prompt's class, else 0; float32 [batch], or None.
    details
        More columns for the table of clips, each float32 [batch].
    judged
        False for a clip that cannot be judged; bool [batch]. `Reward.score` fills it in.
    """

    value: torch.Tensor
    margin: torch.Tensor | None = None
    predicted: list[str] | None = None
    correct: torch.Tensor | None = None
    details: dict[str, torch.Tensor] = field(default_factory=dict)
    judged: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    def reward(self, form: str) -> torch.Tensor:
        """What DDPO maximises, by `reward_form`: "value", "margin" or "label"; float32 [batch]."""
        chosen = {"value": self.value, "margin": self.margin, "label": self.correct}[form]
        if chosen is None:
            raise ValueError(f"this judgement has no {form}")
        return chosen


class Reward(ABC):
    """A judge of clips. docs/adding-a-reward.md shows how to write one.

    `judge` receives mono waveforms in [-1, 1]; `score` replaces a clip that cannot be judged by zeros, and its result
    by the lowest. `judge` must be deterministic, and a clip's score must not depend on the other clips of the batch.
    """

    name: ClassVar[str]  # the name of its module
    headline: ClassVar[str]  # what the tables show: "accuracy" is the mean of `correct`, any other word that of `value`
    lowest: ClassVar[float]  # the range of `value`; a clip that cannot be judged gets the lowest
    highest: ClassVar[float]
    lowest_margin: ClassVar[float | None] = None  # of a clip that cannot be judged; if None, `lowest` - `highest`
    forms: ClassVar[tuple[str, ...]] = ("value",)  # the values of `reward_form` that it supports

    needs: ClassVar[tuple[str, ...]] = ()  # the rewards whose weights it uses too; `fetch` brings them first

    @classmethod
    def fetch(cls, folder: Path, params: Params) -> str:
        """Brings the weights to the empty `folder` and returns where they come from. By default there are none.

        What the reward takes from `params` must be in the folder: stages that use the reward depend on the folder only.
        """
        return "no weights"

    @classmethod
    def load(cls, models: Path, device: torch.device) -> Reward:
        """Loads it with what `fetch` has brought to `models`/rewards/<name>. By default nothing is loaded."""
        return cls()

    @classmethod
    def shortest_clip(cls, folder: Path) -> float:
        """Seconds of audio that a judgement needs at least, by what `fetch` has brought to `folder`."""
        return 0.0

    @abstractmethod
    def judge(self, waveforms: torch.Tensor, sample_rate: int, prompts: Sequence[Prompt]) -> Judgement:
        """Judges waveforms float32 [batch, samples], each against its own prompt; sample rate in Hz."""

    def score(self, waveforms: torch.Tensor, sample_rate: int, prompts: Sequence[Prompt]) -> Judgement:
        """Judges any waveforms [batch, samples]; a clip that cannot be judged gets the lowest score and a warning.

        Returns
        -------
        Finite numbers only, on the CPU, for any content of the waveforms.

        Raises
        ------
        UserError
            If a score is not a finite number.
        """
        waveforms = waveforms.detach().float().cpu()
        reasons = unjudgeable(waveforms)
        found = [reason for reason in reasons if reason]
        if found:
            counts = ", ".join(f"{found.count(r)} {r}" for r in dict.fromkeys(found))
            warnings.warn(
                f"reward {self.name}: {len(found)} of {len(reasons)} clips cannot be judged ({counts}); "
                f"they get the lowest score, {self.lowest:g}",
                stacklevel=2,
            )
        out = torch.tensor([bool(reason) for reason in reasons])
        waveforms = waveforms.masked_fill(out[:, None], 0.0).clamp(-1, 1)  # like a WAV file
        judged = self.judge(waveforms, sample_rate, prompts)
        self.check(judged)

        def floor(x: torch.Tensor, lowest: float) -> torch.Tensor:
            return torch.where(out, torch.tensor(lowest), x.detach().float().cpu())

        lowest_margin = self.lowest - self.highest if self.lowest_margin is None else self.lowest_margin
        return Judgement(
            value=floor(judged.value, self.lowest),
            margin=None if judged.margin is None else floor(judged.margin, lowest_margin),
            predicted=judged.predicted and ["" if o else p for o, p in zip(out, judged.predicted, strict=True)],
            correct=None if judged.correct is None else floor(judged.correct, 0.0),
            details={key: floor(x, 0.0) for key, x in judged.details.items()},
            judged=~out,
        )

    def check(self, judged: Judgement) -> None:
        """`UserError` if a score is not a finite number, as with damaged weights."""
        columns = {"value": judged.value, "margin": judged.margin, "correct": judged.correct} | judged.details
        for key, x in columns.items():
            wrong = 0 if x is None else int((~x.isfinite()).sum())
            if wrong:
                raise UserError(
                    f"reward {self.name}: {key} is not finite for {wrong} of {len(judged.value)} clips, so its weights "
                    "or its code are damaged: run `dvc repro -f fetch`, or correct `judge`."
                )


def unjudgeable(waveforms: torch.Tensor) -> list[str]:
    """Why each clip of [batch, samples] cannot be judged: "not finite", "silent", "clipped", or "" if it can."""
    finite = waveforms.isfinite().all(1)
    peak = waveforms.abs().amax(1)
    full_scale = (waveforms.abs() >= 0.999).float().mean(1)
    return [
        "not finite" if not f else "silent" if p < SILENT else "clipped" if c > CLIPPED else ""
        for f, p, c in zip(finite.tolist(), peak.tolist(), full_scale.tolist(), strict=True)
    ]
