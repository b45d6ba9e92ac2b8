"""The training loop that the paper's code base uses (that of ddpo-pytorch), to measure ours against.

It learns the same thing in the same order of ideas. What it does otherwise than `music_ddpo.ddpo`:

- trajectories are sampled, decoded and scored `batch_size` at a time, and the old log-probabilities are those of that
  sampling;
- the update walks one timestep at a time, `batch_size` trajectories in each call;
- prompts are encoded anew for every batch, by text encoders that stay on the device, as the rewards do.

Adapter (float32 LoRA on frozen weights of the device's precision), guidance (one fused call), sampler, objective,
optimizer and advantages are the same, and so is the noise: it ends with our adapter, up to the order of summation and
the ratio's rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from music_ddpo.ddim import log_probability, make_schedule, mean_and_std
from music_ddpo.generator import Conditioning, Generator
from music_ddpo.params import Params
from music_ddpo.prompts import Prompt
from music_ddpo.randomness import generator as random_generator
from torch import nn

from music_ddpo import ddpo
from music_ddpo.rewards.base import Reward

Encode = Callable[[Sequence[str]], Conditioning]  # row i belongs to text i


def resident_encoders(generator: Generator, negative: str) -> Encode:
    """Encodes as the stock pipeline does, with text encoders that are on the device to stay."""
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


def epoch(
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
    schedule = make_schedule(generator.scheduler, params.steps, ddpo.ETA)
    shape = generator.latent_shape(params.duration)
    count = settings.trajectories_per_epoch

    def policy(latents: torch.Tensor, step: int, rows: Conditioning) -> tuple[torch.Tensor, torch.Tensor]:
        index = torch.full((len(latents),), step)
        noise = generator.predict_noise(latents, schedule.timesteps[index], rows, params.guidance_scale)
        return mean_and_std(schedule, index, latents, noise)

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
    advantage = ddpo.advantages(rewards, index, {}, settings.advantage_window, settings.advantage_clip).to(device)

    share = count // settings.updates_per_epoch
    for clips, rows, path, old in batches:
        for step in params.trained_steps:
            new = log_probability(path[step + 1], *policy(path[step], step, rows))
            loss, _ = ddpo.surrogate(new, old[step], advantage[clips.start : clips.stop], settings.clip_range)
            (loss.sum() / (share * len(params.trained_steps))).backward()
        if clips.stop % share == 0:
            nn.utils.clip_grad_norm_(parameters, settings.max_gradient_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return rewards
