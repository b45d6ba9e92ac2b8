"""DDPO, paper section 4.2 (Black et al., 2023, arXiv 2305.13301): denoising as a multi-step decision process.

    s_t = (c, t, x_t)                        the state: prompt, timestep, noisy latents
    a_t = x_{t-1}                            the action: the next latents
    pi(a_t | s_t) = p_theta(x_{t-1} | x_t, c)  the policy: one DDIM step, a Gaussian (`Policy.log_prob`)
    R(s_t, a_t) = r(x_0, c) if t = 0, else 0   the reward: of the decoded clip

    grad J = E [ sum_t  p_theta(x_{t-1} | x_t, c) / p_theta_old(x_{t-1} | x_t, c)
                        * grad log p_theta(x_{t-1} | x_t, c) * r(x_0, c) ]

Like the reference implementation (kvablack/ddpo-pytorch), and unlike the formula:

- r(x_0, c) is replaced by the advantage, which is normalised for each prompt;
- the ratio is clipped to 1 +- clip_range, with the pessimistic minimum of PPO (the paper: "we clip the difference");
- log p is the mean over the latent's dimensions, not the sum;
- the sum over t is a mean over the trained steps (`ddpo.timesteps`), so the learning rate does not depend on how many
  there are.

There is no value function. A penalty keeps the policy near the base model, if `ddpo.kl` is not 0, as in DPOK (Fan et
al., 2023, arXiv 2305.16381): each action adds kl * KL(p_theta || p_base), the exact divergence of two Gaussians with
the same deviation, to what is minimised. Neither the paper nor the reference has it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from music_ddpo.core.params import DDPOParams
from music_ddpo.machine import processes
from music_ddpo.model.policy import Policy, Trajectories

Minibatch = Sequence[tuple[Trajectories, torch.Tensor]]  # clips sampled together, with their advantages [clips]


def advantages(
    rewards: torch.Tensor, prompt: torch.Tensor, history: dict[int, list[float]], window: int, clip: float,
    minimum: int = 2,
) -> torch.Tensor:  # fmt: skip
    """The reward of each clip minus the mean for its prompt, in standard deviations, clamped to +- `clip`.

    Parameters
    ----------
    rewards, prompt
        Reward and prompt index of each clip, [clips].
    history
        The rewards of each prompt so far. Those of this round are appended, and the latest `window` are kept. So a
        round may be as small as one clip (the paper's batch size), and still has a baseline. An empty history gives
        group-relative advantages, as in GRPO (Shao et al., 2024, arXiv 2402.03300): a clip is compared with the clips
        of the same prompt in the same round.
    minimum
        For a prompt with fewer rewards so far, those of all prompts in this round are the baseline.

    Returns
    -------
    float32 [clips].
    """
    for index, reward in zip(prompt.tolist(), rewards.tolist(), strict=True):
        history.setdefault(index, []).append(reward)
    for index in history:
        latest = max(window, int((prompt == index).sum()))
        history[index] = history[index][-latest:]
    result = torch.empty(len(rewards))
    for i, index in enumerate(prompt.tolist()):
        values = history[index] if len(history[index]) >= minimum else rewards.tolist()
        baseline = torch.tensor(values, dtype=torch.float64)
        # With a deviation below 1e-4 the rewards are practically equal, and their order is noise.
        result[i] = (float(rewards[i]) - baseline.mean()) / (baseline.std(correction=0) + 1e-4)
    return result.clamp(-clip, clip)


def surrogate(ratio: torch.Tensor, advantage: torch.Tensor, clip_range: float) -> torch.Tensor:
    """The clipped objective of each action, to be minimised; [clips]."""
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantage * ratio, -advantage * clipped)


@dataclass
class Learnt:
    """What the updates of a round did: this process's part of the means, and `ratio_error` of the first portion.

    Attributes
    ----------
    clip_fraction
        Share of the actions whose ratio is outside 1 +- clip_range.
    kl
        Mean of half the squared log-probability difference between the current policy and the one that sampled.
    gradient_norm
        Mean over the updates, of all processes, before clipping.
    ratio_error
        The largest |ratio - 1| before the first optimizer step, which must be 0.
    kl_to_base
        Mean of KL(p_theta || p_base); 0 without the penalty, because it is then not computed.
    """

    clip_fraction: float
    kl: float
    gradient_norm: float
    ratio_error: float
    kl_to_base: float = 0.0


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    minibatches: Sequence[Minibatch],
    steps: Sequence[Sequence[int]],
    ddpo: DDPOParams,
    progress: Callable[[int], object] = lambda count: None,
) -> Learnt:
    """Learns from the trajectories of a round, with one optimizer step for each minibatch.

    The gradient of a minibatch is accumulated over portions: clips that were sampled together, at one denoising step.
    So memory grows neither with the number of steps nor with that of trajectories, and the ratio starts at exactly 1,
    because the old log-probability was computed by the same call on the same batch.

    Parameters
    ----------
    minibatches
        The trajectories of this process, each group with its advantages.
    steps
        Which denoising steps each minibatch trains, equally many for all; step 0 is the noisiest.
    progress
        Called with the number of clips after each portion.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    actions = ddpo.trajectories_per_round // ddpo.updates_per_round * len(steps[0])  # of a minibatch, in all processes
    device = policy.generator.device
    clipped, kl, norm = torch.zeros((), device=device), torch.zeros((), device=device), 0.0
    divergence = kl_to_base = torch.zeros((), device=device)  # from the base model
    ratio_error: float | None = None
    for minibatch, trained in zip(minibatches, steps, strict=True):
        for paths, advantage in minibatch:
            for t in trained:
                if ddpo.kl > 0:
                    log_p, divergence = policy.log_prob_and_kl(paths, t)
                else:
                    log_p = policy.log_prob(paths, t)
                if ratio_error is None:  # the first portion: theta is theta_old
                    ratio_error = _check_ratio(policy, log_p, paths, t, minibatches, steps)
                log_p_old = paths.log_prob[:, t].to(device)
                ratio = torch.exp(log_p - log_p_old)  # p_theta / p_theta_old
                loss = surrogate(ratio, advantage.to(device), ddpo.clip_range) + ddpo.kl * divergence
                (loss.sum() / actions).backward()
                clipped += ((ratio.detach() - 1).abs() > ddpo.clip_range).sum()
                kl += 0.5 * (log_p.detach() - log_p_old).square().sum()
                kl_to_base = kl_to_base + divergence.detach().sum()
                progress(len(advantage))
        processes.add_gradients(parameters)
        norm += nn.utils.clip_grad_norm_(parameters, ddpo.max_gradient_norm).item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    updates = ddpo.updates_per_round
    return Learnt(
        clip_fraction=clipped.item() / (actions * updates),
        kl=kl.item() / (actions * updates),
        gradient_norm=norm / updates,
        ratio_error=ratio_error or 0.0,
        kl_to_base=kl_to_base.item() / (actions * updates),
    )


def _check_ratio(
    policy: Policy,
    log_p: torch.Tensor,
    paths: Trajectories,
    t: int,
    minibatches: Sequence[Minibatch],
    steps: Sequence[Sequence[int]],
) -> float:
    """The largest |ratio - 1| of the first portion; if it is not 0, all old log-probabilities are computed again."""

    def error() -> float:
        return (torch.exp(log_p.detach().cpu() - paths.log_prob[:, t]) - 1).abs().max().item()

    if error() != 0 and math.isfinite(error()):
        warnings.warn(
            "this device rounds differently with gradients, so the importance ratio of sampling is not exactly 1; the "
            "old log-probabilities are computed again with gradients in every round, which takes longer",
            stacklevel=2,
        )
        for minibatch, trained in zip(minibatches, steps, strict=True):
            for sampled, _ in minibatch:
                for step in trained:
                    sampled.log_prob[:, step] = policy.log_prob(sampled, step).detach().cpu()
    return error()
