"""Trains the vocoder (`SpeechT5HifiGan`) to reconstruct the corpus from its log-mels.

Multi-resolution STFT and mel losses, no discriminator: with synthesised instruments they are enough,
and they train in minutes on a CPU.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch.nn.functional import l1_loss
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from tqdm import trange
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from corpus import SAMPLE_RATE
from mel import MELS, crops, load, log_mel

STEPS, BATCH, SECONDS = 4500, 12, 0.75
RESOLUTIONS = (256, 512, 1024, 2048)


def spectral_loss(sound: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Spectral convergence plus log-magnitude L1, over several window lengths (Yamamoto et al., 2020)."""
    total = 0.0
    for n_fft in RESOLUTIONS:
        window = torch.hann_window(n_fft)
        a, b = (
            torch.stft(x, n_fft, n_fft // 4, window=window, return_complex=True).abs().clamp(min=1e-4)
            for x in (sound, target)
        )
        convergence = ((b - a).square().sum((1, 2)) / b.square().sum((1, 2))).sqrt().mean()
        total = total + convergence + l1_loss(a.log(), b.log())
    return total / len(RESOLUTIONS)


def vocoder_config() -> SpeechT5HifiGanConfig:
    return SpeechT5HifiGanConfig(
        model_in_dim=MELS,
        sampling_rate=SAMPLE_RATE,
        upsample_initial_channel=256,
        upsample_rates=[5, 5, 5, 4],
        upsample_kernel_sizes=[11, 11, 11, 8],
        resblock_kernel_sizes=[3, 7],
        resblock_dilation_sizes=[[1, 3], [1, 3]],
        normalize_before=False,
    )


def main(steps: int = STEPS) -> None:
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    clips = load("player")
    vocoder = SpeechT5HifiGan(vocoder_config())
    vocoder.apply_weight_norm()
    optimizer = torch.optim.AdamW(vocoder.parameters(), lr=1e-3, betas=(0.8, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, steps, pct_start=0.05)
    bar = trange(steps, desc="vocoder", mininterval=10)
    for step in bar:
        target = crops(clips, rng.integers(len(clips), size=BATCH), SECONDS, rng)
        mel = log_mel(target)
        with torch.autocast("cpu", torch.bfloat16):
            sound = vocoder(mel)
        sound = sound.float()
        loss = spectral_loss(sound, target) + l1_loss(log_mel(sound), mel)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vocoder.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            bar.set_postfix_str(f"loss {loss:.3f}")
    for module in vocoder.modules():  # the class's own remove_weight_norm knows torch's old weight norm only
        if is_parametrized(module, "weight"):
            remove_parametrizations(module, "weight")
    vocoder.save_pretrained("build/vocoder")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
