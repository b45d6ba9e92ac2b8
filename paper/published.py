"""The faults of the paper's published code, each as a wrapper around this project's own parts.

Written from a description of that code, not from its source. Nothing in src/ knows of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from music_ddpo.core.params import Params
from music_ddpo.core.randomness import random_generator
from music_ddpo.measuring import judging
from music_ddpo.model.policy import Policy, Trajectories
from music_ddpo.rewards.base import Reward
from music_ddpo.training import ddpo

FAULTS = {
    "last prompt": "the update has the conditions of the prompt that was sampled last in the round",
    "swapped": "the update has T5's states of the negative prompt, and with guidance those of the positive one for it",
    "speed": "CLAP hears 16 kHz as 48 kHz in training, and 22.05 kHz as 48 kHz in the evaluation",
    "prompts": "the prompts of training and evaluation differ",
    "seed": "no seed is set: the clips before and after training have different noise",
}
TRAINING_TEMPLATE = "a recording of a {emotion} {instrument} solo,high quality"
EVALUATION_TEMPLATE = "a recording of an {emotion} {instrument} solo"  # and piano only
TRAINING_SPEED, EVALUATION_SPEED = 48 / 16, 48 / 22.05


class FaultyPolicy(Policy):
    """A policy whose update computes log-probabilities with other conditions than its sampling.

    Parameters
    ----------
    faults
        Of `FAULTS`: "last prompt" or "swapped" or both; others change nothing here. The last prompt is drawn in each
        round: in this project the prompts take turns, so it would always be the same one.
    """

    def __init__(self, policy: Policy, faults: Collection[str]):
        self.__dict__.update(policy.__dict__)
        self.faults = faults
        self._last, self._updating = 0, False
        self._noise = random_generator(0, "last prompt")

    def sample(self, prompt: torch.Tensor, *rest: Any, **options: Any) -> Trajectories:
        """As `Policy.sample`; remembers one of the prompts."""
        self._last = int(prompt[torch.randint(len(prompt), (), generator=self._noise)])
        return super().sample(prompt, *rest, **options)

    def log_prob(self, paths: Trajectories, step: int) -> torch.Tensor:
        """As `Policy.log_prob`, with the faults."""
        with self._update():
            return super().log_prob(paths, step)

    def log_prob_and_kl(self, paths: Trajectories, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Policy.log_prob_and_kl`, with the faults."""
        with self._update():
            return super().log_prob_and_kl(paths, step)

    def _gaussian(self, prompt: torch.Tensor, step: int, x_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self._updating and "last prompt" in self.faults:
            prompt = torch.full_like(prompt, self._last)
        return super()._gaussian(prompt, step, x_t)

    @contextmanager
    def _update(self) -> Iterator[None]:
        right = self.conditioning
        if "swapped" in self.faults:
            self.conditioning = replace(right, states=right.states.flip(1))
        self._updating = True
        try:
            yield
        finally:
            self.conditioning, self._updating = right, False


def at_speed(reward: Reward, factor: float) -> Reward:
    """The same reward, which hears every clip `factor` times too fast: it is told so much larger a sample rate."""
    right = reward.judge
    reward.judge = lambda sound, rate, prompts: right(sound, round(rate * factor), prompts)  # type: ignore[method-assign, assignment]
    return reward


@contextmanager
def training(faults: Collection[str]) -> Iterator[None]:
    """Inside it, old log-probabilities are those of sampling, even where an update computes others.

    The project's update would notice that the ratio does not start at 1, and compute them again.
    """
    with ExitStack() as stack:
        if {"last prompt", "swapped"} & set(faults):
            stack.enter_context(mock.patch.object(ddpo, "_check_ratio", _ratio_error))
        yield


@contextmanager
def evaluation(faults: Collection[str]) -> Iterator[None]:
    """Inside it, `judging.judge` lets CLAP hear clips at the speed of the published evaluation."""
    load = judging.load_reward

    def faulty(name: str, models: Path, device: torch.device) -> Reward:
        reward = load(name, models, device)
        return at_speed(reward, EVALUATION_SPEED) if name == "clap" else reward

    with mock.patch.object(judging, "load_reward", faulty if "speed" in faults else load):
        yield


def prompts(params: Params, faults: Collection[str], template: str) -> Params:
    """The params with one of the templates above."""
    if "prompts" not in faults:
        return params
    changes: dict[str, Any] = {"template": template}
    if template == EVALUATION_TEMPLATE:
        changes["instruments"] = ["piano"]
    return params.model_copy(update={"prompts": params.prompts.model_copy(update=changes)})


def _ratio_error(policy: Policy, log_p: torch.Tensor, paths: Trajectories, t: int, *rest: Any) -> float:
    return (torch.exp(log_p.detach().cpu() - paths.log_prob[:, t]) - 1).abs().max().item()
