"""Clips from prompts, for `music-ddpo generate`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from music_ddpo.core import audio
from music_ddpo.core.errors import UserError
from music_ddpo.core.files import REASONS, whole
from music_ddpo.core.params import ComputeParams
from music_ddpo.core.params_file import load
from music_ddpo.core.randomness import random_generator
from music_ddpo.machine.batches import choose, portions
from music_ddpo.model.audioldm2 import Generator
from music_ddpo.model.policy import Policy
from music_ddpo.model.rendering import render

LOUDEST = 10 ** (-0.1 / 20)  # -0.1 dBFS for a clip that would exceed full scale: resampling may raise its peaks


@dataclass(frozen=True)
class Settings:
    """What a clip depends on besides its prompt, its take and the weights; as in params.yaml, duration in seconds."""

    duration: float = 10.0  # the defaults are AudioLDM 2's own, for use without a params.yaml
    steps: int = 200
    guidance_scale: float = 3.5
    negative: str = ""
    eta: float = 0.0
    compute: ComputeParams = field(
        default_factory=lambda: ComputeParams(
            device="auto", processes=1, precision="auto", batch="auto", decode_batch="auto"
        )
    )


@dataclass(frozen=True)
class Clip:
    """One clip: the numbers of its prompt and its take, from 0, and its file."""

    prompt: int
    take: int
    path: Path

    def paths(self, compare: bool) -> Iterator[Path]:
        """Its file and, to compare, that of the untouched model's clip from the same noise."""
        yield self.path
        if compare:
            yield self.original

    @property
    def original(self) -> Path:
        """The file of the untouched model's clip from the same noise."""
        return self.path.with_stem(f"{self.path.stem}-original")


def settings(params: Path, options: dict[str, Any]) -> Settings:
    """The options that are given, on top of params.yaml if it exists."""
    chosen = Settings()
    if params.exists():
        p = load(params)
        chosen = Settings(p.duration, p.steps, p.guidance_scale, p.prompts.negative, p.evaluation.eta, p.compute)
    device = options.pop("device")
    if device is not None:
        options["compute"] = chosen.compute.model_copy(update={"device": device})
    return replace(chosen, **{key: value for key, value in options.items() if value is not None})


def plan(prompts: Sequence[str], takes: int, out: Path) -> list[Clip]:
    """The clips and their files.

    Parameters
    ----------
    out
        A folder, in which each clip is named by its prompt, or a file whose name ends in .wav; to that name, several
        prompts add theirs. Several takes add their number.
    """
    file = out.suffix.lower() == ".wav"
    names = [slug(prompt) for prompt in prompts]
    names = [f"{name}-{names[:i].count(name) + 1}" if names.count(name) > 1 else name for i, name in enumerate(names)]
    if file:
        names = [f"{out.stem}-{name}" for name in names] if len(prompts) > 1 else [out.stem]
    folder, suffix = (out.parent, out.suffix) if file else (out, ".wav")
    takes_of = [f"-{take + 1:0{len(str(takes))}d}" if takes > 1 else "" for take in range(takes)]
    return [
        Clip(prompt, take, folder / f"{name}{number}{suffix}")
        for prompt, name in enumerate(names)
        for take, number in enumerate(takes_of)
    ]


def slug(prompt: str) -> str:
    """The words of a prompt as the name of a file, at most 60 characters."""
    words = re.sub(r"\W+", "-", prompt.lower()).strip("-")
    return (words if len(words) <= 60 else words[:60].rpartition("-")[0] or words[:60]) or "clip"


def check_places(paths: Sequence[Path]) -> None:
    """`UserError` for a file that cannot be written, before minutes are spent on sampling."""
    for path in paths:
        probe = path.with_name(path.name + ".partial")  # the name under which it will be written
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise UserError(f"--out: {path} is a folder; move it or use another name.")
            probe.touch()
            probe.unlink()
        except OSError as error:
            reason = REASONS.get(error.errno or 0, error.strerror)
            raise UserError(f"--out: {path} could not be written: {reason}.") from error


def generate(
    clips: Sequence[Clip], prompts: Sequence[str], seed: int, model: Path, adapter: Path | None, compare: bool,
    settings: Settings,
) -> None:  # fmt: skip
    """Generates the clips in batches and writes each batch when it is finished."""
    execution = choose(settings.compute)
    generator = Generator.load(model, execution.device, execution.dtype)
    generator.latent_shape(settings.duration)  # raises an error if it is too short
    if adapter is not None:
        from music_ddpo.model.adapter import load as load_adapter  # late: importing peft takes a second

        load_adapter(generator, adapter)
    policy = Policy(
        generator, prompts, settings.negative, settings.steps, settings.duration, settings.guidance_scale, settings.eta
    )
    execution.fit(torch.no_grad()(policy.trial), len(clips))
    originals = (False, True) if compare else (False,)
    title = f"{settings.duration:g} s, guidance {settings.guidance_scale:g}, eta {settings.eta:g}"
    with tqdm(total=len(clips) * len(originals) * settings.steps, unit="step", desc=title) as bar:
        for part in portions(range(len(clips)), execution.batch):
            index = {i: clips[i].prompt for i in part}
            for original in originals:
                noise = {i: random_generator(seed, "generate", 0, clips[i].take) for i in part}
                with generator.unet.disable_adapter() if original else nullcontext():
                    waveforms = render(policy, part, index, noise, execution, bar)
                for i, waveform in zip(part, waveforms, strict=True):
                    path = clips[i].original if original else clips[i].path
                    _save(path, waveform, generator.sample_rate)
                    tqdm.write(f"{path}: {_describe(clips[i], prompts, len(clips), original)}")


def _save(path: Path, waveform: torch.Tensor, sample_rate: int) -> None:
    """Writes one clip, scaled as a whole if it exceeds full scale."""
    peak = waveform.abs().max()
    if peak > 1:
        waveform = waveform * (LOUDEST / peak)
    with whole(path) as partial:
        audio.write(partial, waveform, sample_rate)


def _describe(clip: Clip, prompts: Sequence[str], count: int, original: bool) -> str:
    """The prompt in one line, and what distinguishes the clip from the others."""
    notes = [f"take {clip.take + 1}"] if count > len(prompts) else []
    notes += ["untouched model"] if original else []
    return " ".join(prompts[clip.prompt].split()) + (f" [{', '.join(notes)}]" if notes else "")
