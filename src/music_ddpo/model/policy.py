"""The policy pi(a_t | s_t) = p_theta(x_{t-1} | x_t, c) of paper 4.2: sample, log-probability, decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from music_ddpo.model.audioldm2 import Generator
from music_ddpo.model.ddim import kl_divergence, log_probability, make_schedule, mean_and_std


@dataclass
class Trajectories:
    """Clips that were sampled together.

    Attributes
    ----------
    prompt
        Index of each clip's prompt c, int64 [clips].
    x
        The latents x_T, ..., x_0 on the CPU, float32 [clips, steps + 1, channels, time, frequency].
    log_prob
        log p(x_{t-1} | x_t, c) of each step under the policy that sampled, float32 [clips, steps]; 0 for a
        deterministic step.
    """

    prompt: torch.Tensor
    x: torch.Tensor
    log_prob: torch.Tensor


class Policy:
    """AudioLDM 2 as a policy over denoising steps, for a fixed list of prompts.

    Parameters
    ----------
    generator
        Its UNet may have an adapter. The prompts are encoded here, once; then the text encoders are freed.
    prompts, negative
        The prompts, and the negative prompt of classifier-free guidance.
    steps, duration, guidance_scale, eta
        Denoising steps, seconds of audio, guidance, and the sampler: 1 is stochastic, which training requires, 0 is
        deterministic DDIM.
    """

    def __init__(
        self,
        generator: Generator,
        prompts: Sequence[str],
        negative: str,
        steps: int,
        duration: float,
        guidance_scale: float,
        eta: float = 1.0,
    ):
        self.generator = generator
        self.duration = duration
        self.guidance_scale = guidance_scale
        self.schedule = make_schedule(generator.scheduler, steps, eta)
        self.shape = generator.latent_shape(duration)
        self.conditioning = generator.encode(prompts, negative)
        generator.free_text_encoders()

    @torch.no_grad()
    def sample(
        self,
        prompt: torch.Tensor,
        noise: Sequence[torch.Generator],
        progress: Callable[[int], object] = lambda count: None,
        keep_path: bool = True,
    ) -> Trajectories:
        """Samples one clip for each entry of `prompt`, all together.

        Parameters
        ----------
        prompt
            Index of each clip's prompt, int64 [clips].
        noise
            One generator per clip: it draws the initial latents first, then the noise of each step.
        progress
            Called with the number of clips after each step.
        keep_path
            Whether `x` has all latents x_T, ..., x_0, or only x_0.
        """

        def draw() -> torch.Tensor:
            return torch.stack([torch.randn(self.shape, generator=g) for g in noise]).to(self.generator.device)

        x_t = draw()
        path, log_probs = [x_t.cpu()], []
        for step in range(len(self.schedule)):
            mean, std = self._gaussian(prompt, step, x_t)
            stochastic = self.schedule.std[step] > 0
            x_t = mean + std * draw() if stochastic else mean
            path = [*path, x_t.cpu()] if keep_path else [x_t.cpu()]
            log_probs.append(log_probability(x_t, mean, std).cpu() if stochastic else torch.zeros(len(prompt)))
            progress(len(prompt))
        return Trajectories(prompt, torch.stack(path, 1), torch.stack(log_probs, 1))

    def log_prob(self, paths: Trajectories, step: int) -> torch.Tensor:
        """Computes log p_theta(x_{t-1} | x_t, c) of one step under the current policy, float32 [clips].

        The same clips in the same batch give the same bits as in `sample`, as long as the weights are the same.
        """
        x_t, x_prev = (paths.x[:, i].to(self.generator.device) for i in (step, step + 1))
        return log_probability(x_prev, *self._gaussian(paths.prompt, step, x_t))

    def log_prob_and_kl(self, paths: Trajectories, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same log-probability, and KL(p_theta || p_base) of the step, both float32 [clips].

        The base p_base is the model without the adapter; its forward pass has no gradient.
        """
        x_t, x_prev = (paths.x[:, i].to(self.generator.device) for i in (step, step + 1))
        with torch.no_grad(), self.generator.unet.disable_adapter():
            base, _ = self._gaussian(paths.prompt, step, x_t)
        mean, std = self._gaussian(paths.prompt, step, x_t)
        return log_probability(x_prev, mean, std), kl_divergence(mean, base, std)

    def trial(self, clips: int) -> torch.Tensor:
        """One forward pass of so many clips, to try whether memory is enough; a log-probability for each."""
        x = torch.zeros(clips, 2, *self.shape)
        return self.log_prob(Trajectories(torch.zeros(clips, dtype=torch.long), x, torch.zeros(clips, 1)), 0)

    def decode(self, x_0: torch.Tensor) -> torch.Tensor:
        """Waveforms float32 [clips, samples] on the CPU, from x_0 [clips, channels, time, frequency]."""
        return self.generator.decode(x_0, self.duration)

    @property
    def sample_rate(self) -> int:
        """Of the waveforms, in Hz."""
        return self.generator.sample_rate

    def _gaussian(self, prompt: torch.Tensor, step: int, x_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        timesteps = self.schedule.timesteps[step].expand(len(prompt))
        noise = self.generator.predict_noise(x_t, timesteps, self.conditioning.rows(prompt), self.guidance_scale)
        return mean_and_std(self.schedule, step, x_t, noise)
