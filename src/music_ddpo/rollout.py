"""Trajectories: denoise from noise to latents with the policy, then decode to sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from music_ddpo.ddim import Schedule, mean_and_std
from music_ddpo.execution import Execution, portions
from music_ddpo.generator import Conditioning, Generator


@torch.no_grad()
def sample(
    generator: Generator,
    conditioning: Conditioning,
    prompt: torch.Tensor,
    schedule: Schedule,
    noise: Sequence[torch.Generator],
    duration: float,
    guidance_scale: float,
    execution: Execution,
    keep_path: bool = True,
    progress: Callable[[int], object] = lambda count: None,
) -> torch.Tensor:
    """Denoises one clip for each entry of `prompt`.

    Parameters
    ----------
    conditioning
        Of all prompts.
    prompt
        Which prompt each clip is for, int64 [clips].
    noise
        One generator a clip: its initial latents come first, then the noise of each step.
    duration
        Of a clip, in seconds.
    keep_path
        Whether to return every latent on the way, x_T to x_0, or x_0 alone.
    progress
        Called with the number of (clip, step) pairs done.

    Returns
    -------
    float32 on the CPU, [clips, steps + 1, channels, time, frequency], or without the second axis.
    """
    shape = generator.latent_shape(duration)
    done = []
    for part in portions(len(prompt), execution.sample_batch):
        rows = conditioning.rows(prompt[part])
        latents = torch.stack([torch.randn(shape, generator=g) for g in noise[part]]).to(generator.device)
        path = [latents.cpu()]
        for step in range(len(schedule)):
            index = torch.full((len(latents),), step)
            predicted = generator.predict_noise(latents, schedule.timesteps[index], rows, guidance_scale)
            latents, std = mean_and_std(schedule, index, latents, predicted)
            if schedule.std[step] > 0:
                fresh = torch.stack([torch.randn(shape, generator=g) for g in noise[part]])
                latents = latents + std * fresh.to(generator.device)
            if keep_path:
                path.append(latents.cpu())
            progress(len(latents))
        done.append(torch.stack(path, 1) if keep_path else latents.cpu())
    return torch.cat(done)


def decode(generator: Generator, latents: torch.Tensor, duration: float, execution: Execution) -> torch.Tensor:
    """Waveforms float32 [clips, samples] from x_0 [clips, channels, time, frequency]."""
    parts = portions(len(latents), execution.decode_batch)
    return torch.cat([generator.decode(latents[part], duration) for part in parts])
