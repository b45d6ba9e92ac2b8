"""Trains the VAE (`AutoencoderKL`) on log-mels of the corpus. Continues from a checkpoint if there is one."""

from __future__ import annotations

import sys

import numpy as np
import torch
from diffusers import AutoencoderKL
from tqdm import trange

from checkpoint import Checkpoint
from mel import FRAMES_PER_SECOND, load, log_mels, mel_crops
from muon import Both

STEPS = 2700
# Crops and their seconds, in turn. A VAE that was trained with crops of 2 s alone decoded clips of 5 s with log-mels
# 2.8 dB too high; that the attention in the middle is the cause is a guess.
BATCHES = ((8, 2.0), (3, 5.0), (2, 10.0))
RATE, VECTOR_RATE = 5e-3, 2e-3
KL_WEIGHT = 1e-3


def build() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=8,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 32, 48, 64),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=int(5 * FRAMES_PER_SECOND),
    )


def main(steps: int = STEPS) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    mels = log_mels(load("player"))
    vae = build()
    optimizer = Both(vae.parameters(), RATE, VECTOR_RATE, steps)
    checkpoint = Checkpoint("vae", rng, vae, optimizer)
    bar = trange(checkpoint.step, steps, desc="VAE", mininterval=10, initial=checkpoint.step, total=steps)
    mean_error = None
    for step in bar:
        size, seconds = BATCHES[step % len(BATCHES)]
        mel = mel_crops(mels, rng.integers(len(mels), size=size), seconds, rng)[:, None]
        posterior = vae.encode(mel).latent_dist
        error = vae.decode(posterior.sample()).sample - mel
        loss = error.abs().mean() + 0.5 * error.square().mean() + KL_WEIGHT * posterior.kl().mean() / (200 * seconds)
        loss.backward()
        optimizer.step()
        now = float(error.detach().abs().mean())
        mean_error = now if mean_error is None else mean_error + 0.02 * (now - mean_error)
        if step % 50 == 0:
            bar.set_postfix_str(f"L1 {mean_error:.3f}")
        if checkpoint.after(step):
            vae.save_pretrained("build/vae")
    finish(vae, mels, rng)


@torch.no_grad()
def finish(vae: AutoencoderKL, mels: torch.Tensor, rng: np.random.Generator, folder: str = "build/vae") -> None:
    """Saves the VAE with the factor that brings its latents to unit variance, as the diffusion model wants them."""
    vae.eval()
    some = mel_crops(mels, np.arange(0, len(mels), 4), 5.0, rng)[:, None]
    latents = torch.cat([vae.encode(part).latent_dist.sample() for part in some.split(16)])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    vae.save_pretrained(folder)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
