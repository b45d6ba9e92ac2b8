"""Trains the VAE (`AutoencoderKL`) on log-mels of the corpus."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from tqdm import trange

from mel import FRAMES_PER_SECOND, crops, load, log_mel

STEPS, BATCH, SECONDS = 2500, 16, 2.0
KL_WEIGHT = 1e-3


def main() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    clips = load("player")
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=8,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=int(5 * FRAMES_PER_SECOND),
    )
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, STEPS, pct_start=0.05)
    bar = trange(STEPS, desc="VAE", mininterval=10)
    for step in bar:
        mel = log_mel(crops(clips, rng.integers(len(clips), size=BATCH), SECONDS, rng))[:, None]
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(mel).latent_dist
            decoded = vae.decode(posterior.sample()).sample.float()
        error = decoded - mel
        loss = error.abs().mean() + 0.5 * error.square().mean() + KL_WEIGHT * posterior.kl().mean() / 400
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            bar.set_postfix_str(f"L1 {error.abs().mean():.3f}")

    vae.eval()
    with torch.no_grad():  # the diffusion model wants latents of unit variance
        mel = log_mel(crops(clips, np.arange(0, len(clips), 4), 5.0, rng))[:, None]
        latents = torch.cat([vae.encode(part).latent_dist.sample() for part in mel.split(16)])
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    vae.save_pretrained("build/vae")


if __name__ == "__main__":
    main()
