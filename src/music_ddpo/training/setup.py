"""A training before its first round: policy, adapter, optimizer, batches, and what an interrupted run has left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from music_ddpo.core.params import Params
from music_ddpo.core.prompts import Prompt
from music_ddpo.machine import processes
from music_ddpo.machine.batches import Execution
from music_ddpo.model import adapter
from music_ddpo.model.audioldm2 import Generator
from music_ddpo.model.policy import Policy
from music_ddpo.training.checkpoint import Run, identity_of
from music_ddpo.training.progress import Progress


def prepare(
    generator: Generator,
    reward: str,
    prompts: Sequence[Prompt],
    params: Params,
    seed: int,
    execution: Execution,
    checkpoint: Path,
    curve: Path,
    weights: dict[str, Any],
) -> tuple[Policy, Run]:
    """Adds a new adapter to the generator and settles the batches; continues from `checkpoint` if it matches.

    Parameters
    ----------
    reward
        Its name.
    checkpoint, curve
        The files that are written after every round.
    weights
        Checksums of the files of the model and the reward.

    Raises
    ------
    UserError
        If a step that is to be trained is deterministic, or memory is not enough for a single clip.
    """
    parameters = adapter.add(generator, params.lora, seed)
    policy = Policy(
        generator, [p.text for p in prompts], params.prompts.negative, params.steps, params.duration,
        params.guidance_scale,
    )  # fmt: skip
    policy.schedule.check_trainable(params.trained_steps)

    def step(clips: int) -> None:
        """One forward and one backward pass, like those of an update."""
        policy.trial(clips).sum().backward()
        for parameter in parameters:
            parameter.grad = None

    ddpo = params.ddpo
    clips = ddpo.trajectories_per_round // ddpo.updates_per_round
    execution.fit(step, math.ceil(clips / processes.size()), generator.unet)
    optimizer = torch.optim.AdamW(
        parameters,
        lr=ddpo.learning_rate,
        betas=(ddpo.adam_betas[0], ddpo.adam_betas[1]),
        weight_decay=ddpo.weight_decay,
    )
    work = len(processes.own(clips)) * ddpo.updates_per_round * (params.steps + 1 + params.steps_of_an_update)
    progress = Progress(f"train {reward}", ddpo.rounds, work)
    identity = identity_of(params, reward, seed, generator.dtype, weights)
    return policy, Run(parameters, optimizer, identity, checkpoint, curve, progress)
