"""The log-mel spectrogram that the VAE encodes and the vocoder converts to audio: 64 bins, 32 frames per second."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import pad
from torchaudio.transforms import MelSpectrogram

from corpus import GROUND, SAMPLE_RATE

HOP, MELS = int(SAMPLE_RATE / GROUND), 64  # 500: a frame is one period of the ground, see corpus.py
FRAMES_PER_SECOND = SAMPLE_RATE // HOP
OFFSET, SCALE = 5.0, 3.0  # brings log-mels of the corpus to about zero mean and unit variance

_transform = MelSpectrogram(
    SAMPLE_RATE, n_fft=1024, hop_length=HOP, n_mels=MELS, f_min=40, f_max=8000, power=1.0, center=False,
    norm="slaney", mel_scale="slaney",
)  # fmt: skip


def log_mel(waveform: torch.Tensor) -> torch.Tensor:
    """Normalised log-mel [batch, samples / HOP, MELS] of a waveform [batch, samples]."""
    margin = (1024 - HOP) // 2
    padded = pad(waveform[:, None], (margin, margin), mode="reflect")[:, 0]
    mel = _transform(padded).clamp(min=1e-5).log()
    return (mel.transpose(1, 2) + OFFSET) / SCALE


def load(split: str) -> np.ndarray:
    """The corpus split as a memory map, int16 [recordings, samples]."""
    return np.load(f"build/corpus/{split}.npy", mmap_mode="r")


def crops(clips: np.ndarray, which: np.ndarray, seconds: float, rng: np.random.Generator) -> torch.Tensor:
    """Waveforms [len(which), samples], each a random crop (on a frame boundary) of clip `which[i]`."""
    length = int(seconds * SAMPLE_RATE)
    starts = rng.integers(0, (clips.shape[1] - length) // HOP + 1, len(which)) * HOP
    rows = [clips[i, s : s + length] for i, s in zip(which, starts, strict=True)]
    return torch.from_numpy(np.stack(rows).astype(np.float32) / 32767)


def log_mels(clips: np.ndarray) -> torch.Tensor:
    """The log-mels of whole recordings [recordings, frames, MELS], in half precision."""
    parts = np.array_split(clips, -(-len(clips) // 16))
    return torch.cat([log_mel(torch.from_numpy(part.astype(np.float32) / 32767)).half() for part in parts])


def mel_crops(mels: torch.Tensor, which: np.ndarray, seconds: float, rng: np.random.Generator) -> torch.Tensor:
    """Log-mels [len(which), frames, MELS], each a random crop of recording `which[i]`."""
    frames = int(seconds * FRAMES_PER_SECOND)
    starts = rng.integers(0, mels.shape[1] - frames + 1, len(which))
    return torch.stack([mels[i, s : s + frames] for i, s in zip(which, starts, strict=True)]).float()
