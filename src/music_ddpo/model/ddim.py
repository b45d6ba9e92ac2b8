"""One reverse DDIM step as a Gaussian policy: mean, standard deviation, log-probability.

Everything here is float32, whatever the model's precision: with a clip range of 1e-4 the importance ratio does not
tolerate log-probabilities in half precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler

from music_ddpo.core.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """The denoising steps, noisiest first (step 0).

    Attributes
    ----------
    timesteps
        Training timestep of each step, int64 [steps].
    alpha, alpha_prev
        Cumulative alpha products at the step and at the one that it leads to, float64 [steps].
    std
        Standard deviation of each step: eta times equation 16 of DDIM (Song et al., 2021), float64 [steps].
    """

    timesteps: torch.Tensor
    alpha: torch.Tensor
    alpha_prev: torch.Tensor
    std: torch.Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    def check_trainable(self, steps: range) -> None:
        """`UserError` if one of `steps` is deterministic: it has no log-probability. Sampling with it is possible."""
        for step in steps:
            if self.std[step] == 0:
                stochastic = int((self.std > 0).sum())
                raise UserError(
                    f"scheduler/scheduler_config.json: with it step {step + 1} of {len(self)} (timestep "
                    f"{self.timesteps[step]}) has a standard deviation of 0, so no log-probability, and cannot be "
                    "trained; "
                    + (f"set ddpo.timesteps to 'first {stochastic}' or fewer." if stochastic else "use another model.")
                )


def make_schedule(scheduler: DDIMScheduler, steps: int, eta: float) -> Schedule:
    """The schedule of a stock scheduler for `steps` denoising steps.

    Parameters
    ----------
    scheduler
        Must predict epsilon and not clip samples, like AudioLDM 2's. It is not changed.
    steps
        Number of denoising steps, at most the scheduler's training timesteps.
    eta
        0 is deterministic DDIM, 1 has the variance of DDPM.

    Raises
    ------
    UserError
        If the scheduler does something that this policy does not model.
    """
    config = scheduler.config
    if config.prediction_type != "epsilon" or config.clip_sample or config.thresholding:
        raise UserError(
            "scheduler/scheduler_config.json: DDPO needs prediction_type 'epsilon' without clip_sample and "
            f"thresholding; found {config.prediction_type!r}, {config.clip_sample} and {config.thresholding}."
        )
    fresh = DDIMScheduler.from_config(config)
    most = config.num_train_timesteps
    if steps <= most:
        fresh.set_timesteps(steps)
    timesteps = fresh.timesteps.long()
    if steps > most or timesteps.max() >= most:
        raise UserError(f"steps: {steps} is too many for this model's scheduler; use at most {most - 1}.")
    previous = timesteps - most // steps
    products = fresh.alphas_cumprod.double()
    alpha = products[timesteps]
    alpha_prev = torch.where(previous >= 0, products[previous.clamp(min=0)], fresh.final_alpha_cumprod.double())
    variance = (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)
    return Schedule(timesteps, alpha, alpha_prev, eta * variance.clamp(min=0).sqrt())


def mean_and_std(
    schedule: Schedule, step: int, latents: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The Gaussian over the next latents, p(x_{t-1} | x_t, c).

    Parameters
    ----------
    step
        Index into the schedule.
    latents
        x_t, [batch, ...].
    noise
        The model's prediction of the noise in x_t, [batch, ...].

    Returns
    -------
    mean, std
        float32 [batch, ...] and a float32 scalar.
    """
    alpha, alpha_prev, std = schedule.alpha[step], schedule.alpha_prev[step], schedule.std[step]
    # mean = sqrt(alpha_prev) * x_0 + sqrt(1 - alpha_prev - std^2) * noise, where x_0 is a function of x_t and noise
    on_latents = (alpha_prev / alpha).sqrt()
    on_noise = (1 - alpha_prev - std**2).clamp(min=0).sqrt() - on_latents * (1 - alpha).sqrt()
    on_latents, on_noise, std = (x.float().to(latents.device, non_blocking=True) for x in (on_latents, on_noise, std))
    return on_latents * latents.float() + on_noise * noise.float(), std


def log_probability(sample: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Log-density of `sample` under the step's Gaussian, averaged over the latent's dimensions.

    The average (not the sum) is the convention of the reference implementation of DDPO: it makes the clip range
    independent of the latent's size.

    Returns
    -------
    float32 [batch]. Requires std > 0, and therefore eta > 0.
    """
    z = (sample.float() - mean) / std
    return (-0.5 * z**2 - std.log() - 0.5 * math.log(2 * math.pi)).flatten(1).mean(1)


def kl_divergence(mean: torch.Tensor, other: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """KL divergence of two Gaussians with the same standard deviation, |mean - other|^2 / (2 std^2).

    Averaged over the latent's dimensions, like `log_probability`.

    Returns
    -------
    float32 [batch]. Requires std > 0.
    """
    return (0.5 * ((mean - other) / std) ** 2).flatten(1).mean(1)
