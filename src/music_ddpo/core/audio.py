"""Waveforms: read, write, resample, cut into windows."""

from __future__ import annotations

import math
from pathlib import Path

import soundfile
import torch
from torchaudio.functional import resample as _resample

from music_ddpo.core.errors import UserError, in_one_line

WAY_OUT = "remove it and run `dvc repro`, which generates it again"
LONGEST = 600  # seconds of a clip that is read
RATES = range(1, 192_001)  # Hz


def write(path: Path | str, waveform: torch.Tensor, sample_rate: int) -> None:
    """Writes one clip [samples] as a 16-bit WAV file; values outside [-1, 1] are clipped.

    Raises
    ------
    UserError
        If a value is not finite, which a WAV file would hide.
    """
    if not waveform.isfinite().all():
        raise UserError(f"{path}: not written, because the waveform is not finite; use a smaller guidance_scale.")
    soundfile.write(path, waveform.clamp(-1, 1).numpy(), sample_rate, subtype="PCM_16", format="WAV")


def read(path: Path | str) -> tuple[torch.Tensor, int]:
    """One clip as mono float32 [samples], and its sample rate in Hz.

    Raises
    ------
    UserError
        If it is missing, not a regular file, not readable as audio, empty, not finite, or longer than `LONGEST`.
    """
    path = Path(path)
    try:
        if not path.is_file():  # reading a pipe would wait forever
            raise UserError(f"{path}: {'is not a regular file' if path.exists() else 'not found'}; {WAY_OUT}.")
        found = soundfile.info(path)
        if found.samplerate not in RATES or not 0 < found.frames <= LONGEST * found.samplerate or found.channels > 2:
            raise UserError(
                f"{path}: has {found.frames} samples at {found.samplerate} Hz on {found.channels} channel(s), which is "
                f"no clip; {WAY_OUT}."
            )
        samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"{path}: is not a readable audio file ({in_one_line(error)}); {WAY_OUT}.") from None
    waveform = torch.from_numpy(samples).mean(1)
    if not waveform.isfinite().all():
        raise UserError(f"{path}: has samples that are not finite; {WAY_OUT}.")
    return waveform, sample_rate


def resample(waveforms: torch.Tensor, source: int, target: int) -> torch.Tensor:
    """Converts waveforms [..., samples] from one sample rate to another, both in Hz."""
    return waveforms if source == target else _resample(waveforms, source, target)


def consecutive(waveforms: torch.Tensor, length: int) -> torch.Tensor:
    """Consecutive whole windows of `length` samples: [..., samples // length, length]; the rest is left out."""
    count = waveforms.shape[-1] // length
    return waveforms[..., : count * length].unflatten(-1, (count, length))


def cover(waveforms: torch.Tensor, length: int) -> torch.Tensor:
    """As many evenly spaced windows as cover the waveform; they may overlap: [..., ceil(samples / length), length].

    A waveform that is shorter than a window is one window of its own length.
    """
    samples = waveforms.shape[-1]
    count = max(1, math.ceil(samples / length))
    starts = torch.linspace(0, max(0, samples - length), count, dtype=torch.float64).round().long().tolist()
    return torch.stack([waveforms[..., start : start + length] for start in starts], -2)
