"""What a reward is: something that listens to clips and returns a number for each."""

from __future__ import annotations

import importlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from music_ddpo.errors import UserError
from music_ddpo.prompts import Prompt
from music_ddpo.rewards.registry import HELD_OUT, REWARDS

SILENT = 1e-4  # a clip whose peak stays below -80 dBFS is silence
CLIPPED = 0.05  # a clip with more than this share of its samples at full scale is no music any more


@dataclass(frozen=True)
class Judgement:
    """What a reward model made of a batch of clips.

    Attributes
    ----------
    value, margin
        The dense reward, and the true class's score less the best one's (paper 5.1); float32 [batch].
    similarity
        What the tables show when the reward's headline is a similarity; float32 [batch], or None.
    predicted
        The quadrant that the judge hears, "Q1" to "Q4", or "" where a clip cannot be judged.
    correct
        1 where the prediction is the prompt's class, else 0; float32 [batch].
    details
        More columns for the table of clips, each float32 [batch].
    """

    value: torch.Tensor
    margin: torch.Tensor
    predicted: list[str]
    correct: torch.Tensor
    similarity: torch.Tensor | None = None
    details: dict[str, torch.Tensor] = field(default_factory=dict)

    def reward(self, form: str) -> torch.Tensor:
        """What DDPO maximises, by `reward_form`: "value", "margin" or "label"; float32 [batch]."""
        return {"value": self.value, "margin": self.margin, "label": self.correct}[form]


class Reward(ABC):
    """A judge of clips. A new one subclasses this in a file of its own, with a line in the registry.

    `judge` may rely on clean input: mono waveforms, finite, neither silent nor clipped. It must be
    deterministic and must not let one clip of a batch influence another.
    """

    name: ClassVar[str]
    headline: ClassVar[str]  # what the tables show of it: "similarity" or "accuracy"
    lowest: ClassVar[float]  # `value` and `margin` of a clip that cannot be judged
    place: ClassVar[str] = ""  # below models/, where its weights are, if not in rewards/<name>

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, device: torch.device) -> Reward:
        """Loads the weights that `fetch` has put in `folder`."""

    @classmethod
    def shortest_clip(cls, folder: Path) -> float:
        """Seconds of audio that a judgement needs at least."""
        return 0.0

    @abstractmethod
    def judge(self, waveforms: torch.Tensor, sample_rate: int, prompts: Sequence[Prompt]) -> Judgement:
        """Judges waveforms float32 [batch, samples] against one prompt each."""

    def score(self, waveforms: torch.Tensor, sample_rate: int, prompts: Sequence[Prompt]) -> Judgement:
        """Judges any waveforms [batch, samples]; what cannot be judged gets the lowest score and a warning.

        Returns
        -------
        Finite numbers only, on the CPU, whatever the waveforms hold.
        """
        waveforms = waveforms.detach().float().cpu()
        bad = unjudgeable(waveforms)
        reasons = [reason for reason in bad if reason]
        if reasons:
            counts = ", ".join(f"{reasons.count(r)} {r}" for r in dict.fromkeys(reasons))
            warnings.warn(
                f"reward {self.name}: {len(reasons)} of {len(bad)} clips cannot be judged ({counts}); "
                f"they get the lowest score, {self.lowest:g}",
                stacklevel=2,
            )
        out = torch.tensor([bool(reason) for reason in bad])
        waveforms = waveforms.masked_fill(out[:, None], 0.0).clamp(-1, 1)  # as a WAV file holds them
        judged = self.judge(waveforms, sample_rate, prompts)

        def low(x: torch.Tensor, floor: float) -> torch.Tensor:
            return torch.where(out, torch.tensor(floor), x.detach().float().cpu())

        return Judgement(
            value=low(judged.value, self.lowest),
            margin=low(judged.margin, self.lowest),
            predicted=["" if o else p for o, p in zip(out.tolist(), judged.predicted, strict=True)],
            correct=low(judged.correct, 0.0),
            similarity=None if judged.similarity is None else low(judged.similarity, self.lowest),
            details={key: low(x, 0.0) for key, x in judged.details.items()},
        )


def unjudgeable(waveforms: torch.Tensor) -> list[str]:
    """Why each clip of [batch, samples] cannot be judged: "not finite", "silent" or "clipped", or ""."""
    finite = waveforms.isfinite().all(1)
    peak = waveforms.abs().amax(1)
    full_scale = (waveforms.abs() >= 0.999).float().mean(1)
    return [
        "not finite" if not f else "silent" if p < SILENT else "clipped" if c > CLIPPED else ""
        for f, p, c in zip(finite.tolist(), peak.tolist(), full_scale.tolist(), strict=True)
    ]


def reward_class(name: str) -> type[Reward]:
    """The class that the registry names; imported only when it is asked for."""
    module, _, attribute = (REWARDS | HELD_OUT)[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def weights_of(name: str, models: Path) -> Path:
    """The folder that a reward's weights are in."""
    return models / (reward_class(name).place or f"rewards/{name}")


def load_reward(name: str, models: Path, device: torch.device) -> Reward:
    """Loads a reward, or the held-out judge, from below `models`.

    Raises
    ------
    UserError
        If its files are missing, truncated or do not fit each other.
    """
    folder = weights_of(name, models)
    try:
        return reward_class(name).load(folder, device)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{folder}: reward {name!r} could not be loaded ({reason}); a file is missing, truncated or altered: "
            "run `dvc repro -f fetch`."
        ) from error


def check_duration(rewards: Sequence[str], models: Path, duration: float) -> None:
    """`UserError` if clips of `duration` seconds are too short for one of the rewards."""
    for name in rewards:
        shortest = reward_class(name).shortest_clip(weights_of(name, models))
        if duration < shortest:
            raise UserError(
                f"duration: {duration:g} s is too short for reward {name!r}, which listens to {shortest:g} s at a "
                f"time; set duration to {shortest:g} or more."
            )
