"""Trajectories: denoise from noise to latents with the policy, then decode to sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from music_ddpo.ddim import Schedule, mean_and_std
from music_ddpo.execution import Execution
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
        One generator a clip, left as it is: its initial latents come first, then the noise of each step.
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
    done = torch.empty(len(prompt), len(schedule) + 1, *shape) if keep_path else torch.empty(len(prompt), *shape)

    def denoise(part: slice) -> None:
        rows = conditioning.rows(prompt[part])
        sources = [g.clone_state() for g in noise[part]]  # where memory runs out, they are needed again

        def draw() -> torch.Tensor:
            return torch.stack([torch.randn(shape, generator=g) for g in sources]).to(generator.device)

        latents = draw()
        path = [latents.cpu()]
        for step in range(len(schedule)):
            index = torch.full((len(latents),), step)
            predicted = generator.predict_noise(latents, schedule.timesteps[index], rows, guidance_scale)
            latents, std = mean_and_std(schedule, index, latents, predicted)
            if schedule.std[step] > 0:
                latents = latents + std * draw()
            if keep_path:
                path.append(latents.cpu())
            progress(len(latents))
        done[part] = torch.stack(path, 1) if keep_path else latents.cpu()

    execution.each("sample_batch", len(prompt), denoise)
    return done


def decode(generator: Generator, latents: torch.Tensor, duration: float, execution: Execution) -> torch.Tensor:
    """Waveforms float32 [clips, samples] from x_0 [clips, channels, time, frequency]."""
    done = []
    execution.each("decode_batch", len(latents), lambda part: done.append(generator.decode(latents[part], duration)))
    return torch.cat(done) if done else torch.empty(0, 0)
