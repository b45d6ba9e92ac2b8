"""The training loop of the paper's code base (that of ddpo-pytorch), to measure ours against.

It learns the same. Its differences from `music_ddpo.training`:

- trajectories are sampled, decoded, scored and trained `batch_size` at a time, whatever memory has room for;
- prompts are encoded again for every batch, by text encoders that stay on the device, as the rewards do.

Adapter (float32 LoRA on frozen weights of the device's precision), guidance (one call of the UNet), sampler, objective,
optimizer, advantages and noise are the same, so it ends with our adapter up to the order of summation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from music_ddpo.core.params import Params
from music_ddpo.core.prompts import Prompt
from music_ddpo.core.randomness import random_generator
from music_ddpo.model.audioldm2 import Conditioning, Generator
from music_ddpo.model.ddim import log_probability, make_schedule, mean_and_std
from music_ddpo.rewards.base import Reward
from music_ddpo.training.ddpo import advantages, surrogate

Encode = Callable[[Sequence[str]], Conditioning]  # row i belongs to text i


def resident_encoders(generator: Generator, negative: str) -> Encode:
    """Encodes like the stock pipeline, with text encoders that stay on the device."""
    pipe, device = generator.pipeline, generator.device
    for module in (pipe.text_encoder, pipe.text_encoder_2, pipe.projection_model, pipe.language_model):
        module.to(device)

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Conditioning:
        states, mask, generated = pipe.encode_prompt(
            list(texts), device, 1, True, negative_prompt=[negative] * len(texts)
        )
        paired = (
            torch.stack(x.chunk(2), dim=1) for x in (generated.to(generator.dtype), states.to(generator.dtype), mask)
        )
        return Conditioning(*paired)

    return encode


def round_(
    generator: Generator,
    reward: Reward,
    prompts: list[Prompt],
    encode: Encode,
    params: Params,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    seed: int,
) -> torch.Tensor:
    """The first round of sample, score, learn; the rewards [trajectories]."""
    settings, device = params.ddpo, generator.device
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    schedule = make_schedule(generator.scheduler, params.steps, eta=1.0)
    shape = generator.latent_shape(params.duration)
    count = settings.trajectories_per_round

    def policy(latents: torch.Tensor, step: int, rows: Conditioning) -> tuple[torch.Tensor, torch.Tensor]:
        timesteps = schedule.timesteps[step].expand(len(latents))
        noise = generator.predict_noise(latents, timesteps, rows, params.guidance_scale)
        return mean_and_std(schedule, step, latents, noise)

    batches, rewards = [], []
    for start in range(0, count, batch_size):
        clips = range(start, min(start + batch_size, count))
        asked = [prompts[clip % len(prompts)] for clip in clips]
        rows = encode([p.text for p in asked])
        sources = [random_generator(seed, "train", 0, clip) for clip in clips]
        with torch.no_grad():
            latents = torch.stack([torch.randn(shape, generator=g) for g in sources]).to(device)
            path, old = [latents], []
            for step in range(params.steps):
                mean, std = policy(latents, step, rows)
                latents = mean + std * torch.stack([torch.randn(shape, generator=g) for g in sources]).to(device)
                old.append(log_probability(latents, mean, std))
                path.append(latents)
            waveforms = generator.decode(latents, params.duration)
        rewards.append(reward.score(waveforms, generator.sample_rate, asked).reward(params.reward_form))
        batches.append((clips, rows, path, old))

    rewards = torch.cat(rewards)
    index = torch.arange(count) % len(prompts)
    advantage = advantages(rewards, index, {}, settings.advantage_window, settings.advantage_clip).to(device)

    share = count // settings.updates_per_round
    for clips, rows, path, old in batches:
        for step in params.trained_steps:
            new = log_probability(path[step + 1], *policy(path[step], step, rows))
            ratio = torch.exp(new - old[step])
            loss = surrogate(ratio, advantage[clips.start : clips.stop], settings.clip_range)
            (loss.sum() / (share * len(params.trained_steps))).backward()
        if clips.stop % share == 0:
            nn.utils.clip_grad_norm_(parameters, settings.max_gradient_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return rewards
