"""Waveforms: read, write, resample, cut into windows."""

from __future__ import annotations

import math
from pathlib import Path

import soundfile
import torch
from torchaudio.functional import resample as _resample

from music_ddpo.core.errors import UserError


def write(path: Path | str, waveform: torch.Tensor, sample_rate: int) -> None:
    """Writes one clip [samples] as a 16-bit WAV file; values outside [-1, 1] are clipped."""
    soundfile.write(path, waveform.clamp(-1, 1).numpy(), sample_rate, subtype="PCM_16", format="WAV")


def read(path: Path | str) -> tuple[torch.Tensor, int]:
    """One clip as mono float32 [samples], and its sample rate in Hz; `UserError` if it cannot be read."""
    try:
        samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(
            f"{path}: is not a readable audio file ({error}); run `dvc repro` to generate it again."
        ) from None
    return torch.from_numpy(samples).mean(1), sample_rate


def resample(waveforms: torch.Tensor, source: int, target: int) -> torch.Tensor:
    """Converts waveforms [..., samples] from one sample rate to another, both in Hz."""
    return waveforms if source == target else _resample(waveforms, source, target)


def consecutive(waveforms: torch.Tensor, length: int) -> torch.Tensor:
    """Consecutive whole windows of `length` samples: [..., samples // length, length]; the rest is left out."""
    count = waveforms.shape[-1] // length
    return waveforms[..., : count * length].unflatten(-1, (count, length))


def cover(waveforms: torch.Tensor, length: int) -> torch.Tensor:
    """As many evenly spread windows as cover the waveform: [..., ceil(samples / length), length].

    A waveform that is shorter than a window is one window of its own length.
    """
    samples = waveforms.shape[-1]
    count = max(1, math.ceil(samples / length))
    starts = torch.linspace(0, max(0, samples - length), count, dtype=torch.float64).round().long().tolist()
    return torch.stack([waveforms[..., start : start + length] for start in starts], -2)
