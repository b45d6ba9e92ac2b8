"""An easy reward, which a training must raise within a few rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from music_ddpo.core.params import Params
from music_ddpo.core.prompts import Prompt
from music_ddpo.core.randomness import random_generator
from music_ddpo.doctor.report import BROKEN, OK, Check, Row
from music_ddpo.machine.batches import Execution
from music_ddpo.model.policy import Policy
from music_ddpo.model.rendering import render
from music_ddpo.rewards.base import Judgement, Reward
from music_ddpo.training import loop
from music_ddpo.training.checkpoint import Run
from music_ddpo.training.progress import Progress

ROUNDS, TRAJECTORIES, UPDATES = 4, 32, 4
PROMPTS = 4  # at most, so that each has several trajectories
LEAST_RATE = 3e-3  # sixteen updates with a smaller learning rate would hardly move a real model
CLIPS = 16  # of which the same are heard before and after
ERRORS = 3.0  # standard errors that the reward must rise by


class Loudness(Reward):
    """The level of a clip in dB below full scale: easy to hear, and easy to raise."""

    name = "loudness"
    headline = "level"
    lowest = -80.0
    highest = 0.0

    @classmethod
    def load(cls, models: Path, device: torch.device) -> Loudness:
        """It has no weights."""
        return cls()

    def judge(self, waveforms: torch.Tensor, sample_rate: int, prompts: Sequence[Prompt]) -> Judgement:
        """Judges waveforms [batch, samples]."""
        power = waveforms.double().square().mean(1).clamp(min=10 ** (self.lowest / 10))
        return Judgement((10 * power.log10()).float())


def rises(
    policy: Policy, run: Run, prompts: Sequence[Prompt], params: Params, seed: int, execution: Execution, folder: Path
) -> Check[None]:
    """Trains the adapter of `run` with the easy reward: this study's settings, in small rounds of few prompts.

    Clips from the same noise are compared before and after, so that few are enough.

    Parameters
    ----------
    folder
        For the checkpoint and the reward curve.
    """
    small = params.ddpo.model_copy(
        update={"rounds": ROUNDS, "trajectories_per_round": TRAJECTORIES, "updates_per_round": UPDATES}
    )
    rate = max(LEAST_RATE, params.ddpo.learning_rate)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    params, prompts = params.model_copy(update={"ddpo": small, "reward_form": "value"}), prompts[:PROMPTS]
    progress = Progress("easy reward", ROUNDS, TRAJECTORIES * (params.steps + 1 + params.steps_of_an_update))
    easy = Run(run.parameters, run.optimizer, {}, folder / "easy.pt", folder / "easy.csv", progress)
    before = _levels(policy, prompts, seed, execution)
    loop.train(policy, Loudness(), prompts, params, seed, execution, easy)
    change = _levels(policy, prompts, seed, execution) - before
    rise, error = change.mean().item(), change.std().item() / math.sqrt(len(change))
    text = (
        f"{ROUNDS} rounds of {TRAJECTORIES} with a learning rate of {rate:g} have changed the loudness of {CLIPS} "
        f"clips by {rise:+.2f} ± {error:.2f} dB"
    )
    numbers: dict[str, float | None] = {"rise": rise, "standard_error": error}
    if rise > ERRORS * error:
        yield Row("training", OK, text, numbers=numbers)
    else:
        advice = (
            "other rewards will probably not rise either: see whether most actions are clipped (ddpo.clip_range), and "
            "compare ddpo.timesteps, lora.rank and compute.precision with the committed params.yaml"
        )
        yield Row("training", BROKEN, text, advice, numbers)


def _levels(policy: Policy, prompts: Sequence[Prompt], seed: int, execution: Execution) -> torch.Tensor:
    """The loudness of clips whose noise is always the same, float32 [CLIPS]."""
    prompt = {i: i % len(prompts) for i in range(CLIPS)}
    noise = {i: random_generator(seed, "doctor", 1, i) for i in prompt}
    with tqdm(total=CLIPS * len(policy.schedule), unit="step", desc="loudness", leave=False) as bar:
        waveforms = torch.stack(render(policy, range(CLIPS), prompt, noise, execution, bar))
    return Loudness().score(waveforms, policy.sample_rate, [prompts[i] for i in prompt.values()]).value
