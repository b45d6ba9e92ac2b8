"""Versions of what the classifier hears: other pitch, other loudness, a little noise."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from music_ddpo.core.audio import resample
from music_ddpo.core.randomness import random_generator

PARTS, MOST_PARTS = 48, 2  # the speed changes by a few of 48 parts: the pitch by 0.7 semitones at most
MOST_GAIN = 3.0  # dB, up or down
NOISE = (-50.0, -30.0)  # dB, relative to the clip's mean power


def versions(sound: torch.Tensor, count: int) -> torch.Tensor:
    """Versions of each waveform, [count, batch, samples]; the first is the waveform itself.

    Speed, gain and noise of a version are the same for every clip and in every call, so a clip always gets the same
    score. A version keeps the length of the clip: a faster one ends with its mirror image, a slower one is cut.

    Parameters
    ----------
    sound
        [batch, samples]. The rate does not matter.
    """
    return torch.stack([sound, *(_version(sound, number) for number in range(1, count))])


def _version(sound: torch.Tensor, number: int) -> torch.Tensor:
    random = random_generator(0, "emopia variant", 0, number)
    parts = int(torch.randint(-MOST_PARTS, MOST_PARTS + 1, (), generator=random))
    gain, noise = (lowest + (highest - lowest) * torch.rand((), generator=random).item()
                   for lowest, highest in ((-MOST_GAIN, MOST_GAIN), NOISE))  # fmt: skip
    samples = sound.shape[1]
    changed = resample(sound, PARTS + parts, PARTS)[:, :samples]
    changed = pad(changed, (0, samples - changed.shape[1]), mode="reflect")
    white = torch.randn(samples, generator=random).to(sound.device)
    power = changed.square().mean(1, keepdim=True)
    return 10 ** (gain / 20) * (changed + 10 ** (noise / 20) * power.sqrt() * white)
