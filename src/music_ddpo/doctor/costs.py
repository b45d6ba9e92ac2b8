"""What `dvc repro` will take on this machine, stage by stage, from measured seconds and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path

import torch

from music_ddpo.core.params import SHIPPED, Params
from music_ddpo.core.prompts import Prompt
from music_ddpo.doctor.environment import bytes_in, cache_links, free_disk
from music_ddpo.doctor.report import BROKEN, LOOK, OK, Check, Row
from music_ddpo.machine.batches import Execution, total_memory
from music_ddpo.machine.memory import PeakMemory
from music_ddpo.model.policy import Policy
from music_ddpo.rewards.base import Reward
from music_ddpo.training import estimate

RIFF = 44  # bytes of a WAV file before its samples, which have 2 bytes each


@dataclass
class Part:
    """What was measured of one part: loading it, and using it for one clip.

    Attributes
    ----------
    load
        Seconds to load it.
    one
        Seconds for one clip (of a judge).
    peak, kept
        Bytes that it needs at most, and that it keeps.
    """

    load: float = 0.0
    one: float = 0.0
    peak: int = 0
    kept: int = 0


@dataclass
class Costs:
    """What was measured on this machine.

    Attributes
    ----------
    start
        Seconds until a stage has imported everything.
    base
        Bytes in use after that.
    speed
        Of the generator.
    generator
        Loaded and ready to sample.
    sample, learn
        Bytes that sampling and decoding, and learning, need on top of `generator.kept`.
    judges
        By name.
    latents
        Bytes of a round's latents that are kept.
    clip, adapter, weights
        Bytes on disk of one clip, of an adapter, and of what is fetched.
    exact
        Whether the first ratio is exactly 1.
    """

    start: float = 0.0
    base: int = 0
    speed: estimate.Speed = field(default_factory=lambda: estimate.Speed(0.0, 0.0, 0.0))
    generator: Part = field(default_factory=Part)
    sample: int = 0
    learn: int = 0
    judges: dict[str, Part] = field(default_factory=dict)
    latents: int = 0
    clip: int = 0
    adapter: int = 0
    weights: int = 0
    exact: bool = True


@dataclass(frozen=True)
class Need:
    """What a stage takes: seconds (None: not estimated), bytes of memory, and bytes that it writes."""

    seconds: float | None
    memory: int
    disk: int = 0


def stages(params: Params, costs: Costs, processes: int = 1) -> dict[str, Need]:
    """The needs of each stage of `dvc repro`, from measured ones.

    Parameters
    ----------
    processes
        That share the clips, each at the measured speed.
    """
    clips = params.evaluation.clips_per_emotion * len(params.prompts.emotions)
    own = ceil(clips / processes)
    ready = costs.start + costs.generator.load
    generate = Need(
        ready + own * (params.steps * costs.speed.denoise + costs.speed.decode),
        costs.base + max(costs.generator.peak, costs.generator.kept + costs.sample),
        clips * costs.clip,
    )
    judges = costs.judges.values()
    judge = Need(
        costs.start + sum(judge.load + own * judge.one for judge in judges),
        costs.base + max((judge.peak for judge in judges), default=0),
    )
    needs = {"fetch": Need(None, 0, costs.weights), "baseline": generate, "score": judge}
    for reward in params.rewards:
        parts = [costs.judges[part] for part in params.mixtures.get(reward, [reward])]
        one = sum(part.one for part in parts)
        working = costs.generator.kept + max(costs.learn, costs.sample) + costs.latents
        needs[f"train@{reward}"] = Need(
            ready
            + sum(part.load for part in parts)
            + estimate.seconds(params, costs.speed, one, processes=processes, exact=costs.exact),
            costs.base + sum(part.peak for part in parts) + max(costs.generator.peak, working),
            4 * costs.adapter,  # itself, and the checkpoint: weights and two moments of AdamW
        )
        needs[f"generate@{reward}"], needs[f"evaluate@{reward}"] = generate, judge
    return needs


def measure_generator(policy: Policy, execution: Execution, params: Params, costs: Costs) -> None:
    """Fills in the speed of the generator and what it needs."""
    device, batch = execution.device, execution.batch
    with PeakMemory(device) as sampling:
        denoise = estimate.denoise_seconds(policy, batch)
        decode = estimate.decode_seconds(policy, execution.decode_batch)
    with PeakMemory(device) as learning:
        learn = estimate.learn_seconds(policy, batch)
    costs.speed = estimate.Speed(denoise, learn, decode)
    costs.sample, costs.learn = sampling.needed, learning.needed
    costs.latents = estimate.path_bytes(params, policy.shape) if device.type == "cpu" else 0
    costs.clip = RIFF + 2 * int(policy.duration * policy.sample_rate)
    costs.adapter = 4 * sum(p.numel() for p in policy.generator.unet.parameters() if p.requires_grad)


def measure_judges(
    judges: Mapping[str, Reward], waveform: torch.Tensor, sample_rate: int, prompt: Prompt, execution: Execution,
    costs: Costs,
) -> None:  # fmt: skip
    """Fills in the seconds of each judge for one clip in a batch; `waveform` is [samples]."""
    batch = execution.decode_batch
    waveforms = waveform.repeat(batch, 1)
    for name, judge in judges.items():
        part = costs.judges.setdefault(name, Part())
        with PeakMemory(execution.device) as judging:
            part.one = estimate.judge_seconds(judge, waveforms, sample_rate, [prompt] * batch)
        part.peak = max(part.peak, part.kept + judging.needed)


def rows(params: Params, costs: Costs, execution: Execution) -> Check[None]:
    """One row for each stage that takes more than seconds, and one for the whole."""
    processes, on_cpu = params.compute.processes, execution.device.type == "cpu"
    # On a CPU processes share the cores, each with its own copy of everything; otherwise each has its own GPU.
    needs = stages(params, costs, 1 if on_cpu else processes)
    if on_cpu:
        needs = {stage: replace(need, memory=need.memory * processes) for stage, need in needs.items()}
    most = total_memory(execution.device)
    for stage, need in needs.items():
        text = _text(need, params)
        if need.memory > most:
            advice = "use a smaller compute.batch or compute.decode_batch, a shorter duration, or a larger machine"
            yield Row(stage, BROKEN, f"{text}; this machine has {_bytes(most)}", advice, _numbers(need))
        else:
            yield Row(stage, OK, text, numbers=_numbers(need))
    yield _total(needs, params)


def _total(needs: Mapping[str, Need], params: Params) -> Row:
    """The sum over the stages, and whether the disk has room for it."""
    total = Need(
        sum(need.seconds or 0.0 for need in needs.values()),
        max(need.memory for need in needs.values()),
        sum(need.disk for need in needs.values()) * (1 if cache_links() else 2),
    )
    there = sum(bytes_in(Path(name)) for name in ("models", "clips"))
    free = min(free_disk().values())
    text = f"about {_text(total, params)}; seed, features, table and card take seconds"
    if params.model not in SHIPPED:
        text += "; the download is not counted"
    if total.disk - there > free:
        advice = "free some disk, or move the project and DVC's cache (`dvc cache dir`)"
        return Row("dvc repro", BROKEN, f"{text}; {_bytes(free)} are free", advice, _numbers(total))
    if total.disk - there > 0.9 * free:
        return Row("dvc repro", LOOK, f"{text}; {_bytes(free)} are free", "free some disk", _numbers(total))
    return Row("dvc repro", OK, text, numbers=_numbers(total))


def _numbers(need: Need) -> dict[str, float | None]:
    return {"seconds": need.seconds, "memory_bytes": need.memory, "disk_bytes": need.disk}


def _text(need: Need, params: Params) -> str:
    if need.seconds is not None:
        time = estimate.duration(need.seconds)
    else:
        time = "seconds" if params.model in SHIPPED else "a download"
    memory = f", {_bytes(need.memory)} of memory" if need.memory else ""
    return time + memory + (f", {_bytes(need.disk)} on disk" if need.disk else "")


def _bytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
