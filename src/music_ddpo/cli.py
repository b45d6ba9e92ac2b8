"""The command `music-ddpo`: clips from prompts, with a trained adapter or with the untouched model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from pydantic import ValidationError

from music_ddpo.errors import UserError
from music_ddpo.files import REASONS, whole
from music_ddpo.params import ComputeParams, Params, load
from music_ddpo.stage import MODELS

if TYPE_CHECKING:
    import torch

PARAMS = Path("params.yaml")
LOUDEST = 10 ** (-0.1 / 20)  # -0.1 dBFS, where a clip would exceed full scale: resampling may lift its peaks a little


@dataclass(frozen=True)
class Settings:
    """What a clip depends on beside its prompt, its take and the weights; as in params.yaml, duration in seconds."""

    duration: float = 10.0  # the defaults are AudioLDM 2's own, for where there is no params.yaml
    steps: int = 200
    guidance_scale: float = 3.5
    negative: str = ""
    eta: float = 0.0
    compute: ComputeParams = field(
        default_factory=lambda: ComputeParams(**dict.fromkeys(ComputeParams.model_fields, "auto") | {"processes": 1})
    )


@dataclass(frozen=True)
class Clip:
    """One clip that is asked for: row of the prompt and of the take, both from 0, and the file it goes to."""

    prompt: int
    take: int
    path: Path

    @property
    def twin(self) -> Path:
        """The file of the untouched model's clip on the same noise."""
        return self.path.with_stem(f"{self.path.stem}-original")


class Like(click.ParamType):
    """An option that may hold what its key in params.yaml may hold."""

    def __init__(self, key: str, text: click.ParamType):
        self.key, self.text, self.name = tuple(key.split(".")), text, text.name

    def convert(self, value, param, ctx):
        value = content = self.text.convert(value, param, ctx)
        for part in reversed(self.key):
            content = {part: content}
        try:
            Params.model_validate(content)
        except ValidationError as error:  # always, for the other keys are missing
            for wrong in error.errors():
                if wrong["loc"] == self.key:
                    reason = wrong["msg"].removeprefix("Value error, ").removeprefix("Input ")
                    self.fail(f"{value!r} {reason}.", param, ctx)
        return value


def _wav(ctx: click.Context, param: click.Parameter, path: Path) -> Path:
    if path.suffix.lower() != ".wav":
        raise click.BadParameter(f"{str(path)!r} does not end in .wav; give a name that does, as clip.wav.", ctx, param)
    return path


def _not_blank(ctx: click.Context, param: click.Parameter, prompts: tuple[str, ...]) -> tuple[str, ...]:
    for i, prompt in enumerate(prompts):
        if not prompt.strip():
            raise click.BadParameter(f"prompt {i + 1} of {len(prompts)} is empty; say what to play.", ctx, param)
    return prompts


@click.group()
def main() -> None:
    """Reinforcement learning on text-to-music diffusion. The study itself is run with `dvc repro`."""


@main.command()
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...", callback=_not_blank)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE.wav",
    callback=_wav,
    help="Where the clip goes. Of several clips each gets a number: angry-1.wav, angry-2.wav, ...",
)
@click.option(
    "--adapter",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The adapter to play with, e.g. models/adapters/emopia; without it the untouched model plays.",
)
@click.option(
    "--compare", is_flag=True, help="Also write the untouched model's clip on the same noise, as angry-original.wav."
)
@click.option(
    "--takes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Clips of each prompt, each from a noise of its own.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Of the noise. It and the take's number settle it, the same for every prompt and adapter.",
)
@click.option("--duration", type=Like("duration", click.FLOAT), metavar="SECONDS", help="Length of a clip.")
@click.option("--steps", type=Like("steps", click.INT), metavar="N", help="Denoising steps.")
@click.option(
    "--guidance-scale",
    type=Like("guidance_scale", click.FLOAT),
    metavar="SCALE",
    help="Classifier-free guidance; 1 switches it off.",
)
@click.option("--negative", metavar="TEXT", help="What guidance leads away from.")
@click.option(
    "--eta",
    type=Like("evaluation.eta", click.FLOAT),
    metavar="ETA",
    help="0 is deterministic DDIM, 1 as stochastic as the training.",
)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    default=MODELS / "pipeline",
    show_default=True,
    metavar="FOLDER",
    help="The model, in the layout of a diffusers pipeline.",
)
@click.option(
    "--device", type=Like("compute.device", click.STRING), metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps."
)
def generate(
    prompts: tuple[str, ...], adapter: Path | None, out: Path, takes: int, compare: bool, seed: int, model: Path,
    **options,
) -> None:  # fmt: skip
    """Writes a clip for each PROMPT: a 16-bit WAV file, scaled down as a whole where it would clip.

    Options without a default of their own have it from params.yaml in this folder (--eta: evaluation.eta). Where
    there is none they are as AudioLDM 2 has them: 10 s, 200 steps, guidance 3.5, no negative prompt, eta 0.

    The same command gives the same bits on the same machine. What else is asked for (other prompts, more takes)
    changes nothing that can be heard in a clip. A file that is there already is replaced.

    \b
    music-ddpo generate "A recording of an angry piano solo, high quality" \\
        --adapter models/adapters/emopia --compare --out angry.wav
    """
    if compare and adapter is None:
        raise click.UsageError("--compare sets the untouched model beside an adapter; name one with --adapter FOLDER.")
    count = len(prompts) * takes
    places = [out] if count == 1 else [_numbered(out, i, count) for i in range(count)]
    clips = [Clip(*divmod(i, takes), path) for i, path in enumerate(places)]
    try:
        settings = _settings(**options)
        _check_places([clip.path for clip in clips] + [clip.twin for clip in clips if compare])
        _generate(clips, prompts, seed, model, adapter, compare, settings)
    except UserError as error:
        raise click.ClickException(str(error)) from error
    except RuntimeError as error:  # as torch says it of a GPU and of a CPU
        if not re.search("out of memory|allocate memory", str(error)):
            raise
        raise click.ClickException(
            "the memory is full; ask for a shorter --duration or fewer --takes, or set compute.sample_batch and "
            "compute.decode_batch to 1 in params.yaml."
        ) from error


def _numbered(path: Path, i: int, count: int) -> Path:
    return path.with_stem(f"{path.stem}-{i + 1:0{len(str(count))}d}")


def _settings(device: str | None, **options) -> Settings:
    """The options, where they are given, on top of params.yaml, where there is one."""
    settings = Settings()
    if PARAMS.exists():
        p = load(PARAMS)
        settings = Settings(p.duration, p.steps, p.guidance_scale, p.prompts.negative, p.evaluation.eta, p.compute)
    if device is not None:
        options["compute"] = settings.compute.model_copy(update={"device": device})
    return replace(settings, **{key: value for key, value in options.items() if value is not None})


def _check_places(paths: Sequence[Path]) -> None:
    """`UserError` for a file that could not be written later: better now than after minutes of sampling."""
    for path in paths:
        probe = path.with_name(path.name + ".partial")  # the name under which it will be written
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise UserError(f"--out: {path} is a folder; move it away or give another name.")
            probe.touch()
            probe.unlink()
        except OSError as error:
            reason = REASONS.get(error.errno, error.strerror)
            raise UserError(f"--out: {path} could not be written: {reason}.") from error


def _generate(
    clips: Sequence[Clip], prompts: Sequence[str], seed: int, model: Path, adapter: Path | None, compare: bool,
    settings: Settings,
) -> None:  # fmt: skip
    import torch  # late, as what needs it: `--help` and a wrong option need not wait for it
    from tqdm import tqdm

    from music_ddpo import adapter as adapters
    from music_ddpo import execution
    from music_ddpo.ddim import make_schedule
    from music_ddpo.generator import Generator
    from music_ddpo.randomness import generator as random_generator
    from music_ddpo.rollout import decode, sample

    chosen = execution.choose(settings.compute)
    generator = Generator.load(model, chosen.device, chosen.dtype)
    generator.latent_shape(settings.duration)  # says if it is too short
    if adapter is not None:
        adapters.load(generator, adapter)
    schedule = make_schedule(generator.scheduler, settings.steps, settings.eta)
    conditioning = generator.encode(prompts, settings.negative)
    generator.forget_text_encoders()
    originals = (False, True) if compare else (False,)
    title = f"{settings.duration:g} s, guidance {settings.guidance_scale:g}, eta {settings.eta:g}"
    with tqdm(total=len(clips) * len(originals) * settings.steps, unit="step", desc=title) as bar:
        for part in execution.portions(len(clips), chosen.sample_batch):  # what is done is on the disk
            asked = clips[part]
            for original in originals:
                noise = [random_generator(seed, "generate", 0, clip.take) for clip in asked]
                with generator.unet.disable_adapter() if original else nullcontext():
                    latents = sample(
                        generator, conditioning, torch.tensor([clip.prompt for clip in asked]), schedule, noise,
                        settings.duration, settings.guidance_scale, chosen, keep_path=False, progress=bar.update,
                    )  # fmt: skip
                waveforms = decode(generator, latents, settings.duration, chosen)
                for clip, waveform in zip(asked, waveforms, strict=True):
                    path = clip.twin if original else clip.path
                    _save(path, waveform, generator.sample_rate)
                    tqdm.write(f"{path}: {_describe(clip, prompts, len(clips), original)}")


def _save(path: Path, waveform: torch.Tensor, sample_rate: int) -> None:
    """Writes one clip, scaled as a whole where it exceeds full scale; what is not sound is a `UserError`."""
    from music_ddpo import audio  # late, as above

    if not waveform.isfinite().all():
        raise UserError(
            f"{path}: not written, for the model's output is not finite; try a smaller --guidance-scale, another "
            "--adapter, or compute.precision: float32 in params.yaml."
        )
    peak = waveform.abs().max()
    if peak > 1:
        waveform = waveform * (LOUDEST / peak)
    with whole(path) as partial:
        audio.write(partial, waveform, sample_rate)


def _describe(clip: Clip, prompts: Sequence[str], count: int, original: bool) -> str:
    """The prompt, in one line, and what else tells the clip from the others."""
    notes = [f"take {clip.take + 1}"] if count > len(prompts) else []
    notes += ["untouched model"] if original else []
    return " ".join(prompts[clip.prompt].split()) + (f" [{', '.join(notes)}]" if notes else "")
