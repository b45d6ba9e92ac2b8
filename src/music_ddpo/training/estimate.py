"""What a training will take: counts of clips and steps, times measured seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, prod

import torch

from music_ddpo.core.params import Params
from music_ddpo.core.prompts import Prompt
from music_ddpo.machine import processes
from music_ddpo.machine.batches import Execution, full_memory_explained
from music_ddpo.machine.memory import peak
from music_ddpo.model.policy import Policy
from music_ddpo.rewards.base import Reward

LEAST = 0.2  # seconds: shorter work is measured several times


@dataclass(frozen=True)
class Speed:
    """Seconds for one clip, in the batches that are used.

    Attributes
    ----------
    denoise
        One denoising step.
    learn
        One denoising step, forward and backward.
    decode
        Latents to waveform.
    """

    denoise: float
    learn: float
    decode: float


def seconds(
    params: Params, speed: Speed, judge: float, rounds: int | None = None, processes: int = 1, exact: bool = True
) -> float:
    """Seconds that a training takes, without loading.

    Parameters
    ----------
    speed, judge
        Measured seconds for one clip; `judge` is for the reward.
    rounds
        That are left; all by default.
    processes
        That share the clips, each at this speed.
    exact
        Whether the first ratio is exactly 1. If not, each round computes the old log-probabilities again.
    """
    clips = ceil(params.ddpo.trajectories_per_round / processes)
    again = (0.0 if exact else speed.denoise) + (speed.denoise if params.ddpo.kl > 0 else 0.0)
    trained = params.steps_of_an_update * (speed.learn + again)
    one = params.steps * speed.denoise + speed.decode + judge + trained
    return (params.ddpo.rounds if rounds is None else rounds) * clips * one


def path_bytes(params: Params, shape: Sequence[int], processes: int = 1) -> int:
    """Bytes of the latents x_T, ..., x_0 of a round's clips, which are kept on the CPU; `shape` is that of one x_t."""
    return ceil(params.ddpo.trajectories_per_round / processes) * (params.steps + 1) * prod(shape) * 4


def denoise_seconds(policy: Policy, batch: int) -> float:
    """Seconds for one denoising step of one clip, in batches."""
    return _timed(lambda: torch.no_grad()(policy.trial)(batch), policy.generator.device) / batch


def learn_seconds(policy: Policy, batch: int) -> float:
    """Seconds for one denoising step of one clip, forward and backward, in batches."""

    def step() -> None:
        policy.trial(batch).sum().backward()
        policy.generator.unet.zero_grad(set_to_none=True)

    return _timed(step, policy.generator.device) / batch


def decode_seconds(policy: Policy, batch: int) -> float:
    """Seconds for decoding one clip, in batches."""
    x_0 = torch.zeros(batch, *policy.shape)
    return _timed(lambda: policy.decode(x_0), policy.generator.device) / batch


def judge_seconds(judge: Reward, waveforms: torch.Tensor, sample_rate: int, prompts: Sequence[Prompt]) -> float:
    """Seconds for judging one clip, in a batch like `waveforms` [batch, samples]."""
    heard = waveforms.nan_to_num().clamp(-1, 1)
    return _timed(lambda: judge.judge(heard, sample_rate, prompts).value.cpu()) / len(heard)


def announcement(
    policy: Policy, reward: Reward, prompts: Sequence[Prompt], params: Params, execution: Execution, done: int
) -> str:
    """One line: what the rounds after the first `done` will take. It measures each part once, without random numbers.

    The memory is the most that has been in use so far, after one step of each kind, and the latents of a round.
    """
    batch, decode_batch = execution.batch, execution.decode_batch
    denoise, learn = denoise_seconds(policy, batch), learn_seconds(policy, batch)
    with full_memory_explained("decode_batch", decode_batch):
        decode = decode_seconds(policy, decode_batch)
        waveforms = policy.decode(torch.zeros(decode_batch, *policy.shape))
        asked = [prompts[i % len(prompts)] for i in range(decode_batch)]
        heard = judge_seconds(reward, waveforms, policy.sample_rate, asked)
    speed = Speed(denoise, learn, decode)
    rounds = params.ddpo.rounds - done
    total = seconds(params, speed, heard, rounds, processes.size())
    on_cpu = execution.device.type == "cpu"
    memory = peak(execution.device) + (path_bytes(params, policy.shape, processes.size()) if on_cpu else 0)
    return (
        f"train {reward.name}: {rounds} rounds of {params.ddpo.trajectories_per_round} clips will take about "
        f"{duration(total)} and {memory / 1e9:.1f} GB of {'memory' if on_cpu else 'GPU memory'}"
    )


def duration(seconds: float) -> str:
    """A length of time in the unit that suits it."""
    for limit, unit, name in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            number = seconds / unit
            return f"{number:.1f} {name}" if number < 10 else f"{number:.0f} {name}"
    return f"{seconds / 86400:.1f} days"


def _timed(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Mean seconds of `work`, after it was done once to warm up."""

    def finish() -> float:
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    work()
    started, ended, times = finish(), 0.0, 0
    while ended - started < LEAST and times < 10:
        work()
        ended, times = finish(), times + 1
    return (ended - started) / times
