"""The optimizer of VAE and vocoder: Muon for the weights, AdamW for biases and norms, and their schedule."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal (Jordan et al., 2024). A convolution's weight is a matrix [first dimension, the rest].

    An update has the root mean square 0.2, as AdamW's have (Liu et al., 2025). torch's own takes two dimensions only.
    On this VAE it needs 0.4 of AdamW's steps.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                mean.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonal(parameter.grad.lerp(mean, group["momentum"]).flatten(1))
                update *= 0.2 * max(update.shape) ** 0.5
                parameter.add_(update.view_as(parameter), alpha=-group["lr"])


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """About the nearest orthogonal matrix, by five Newton-Schulz iterations."""
    x = matrix / (matrix.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(5):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T


class Both:
    """Muon at `rate` and AdamW at `vector_rate`, for the parameters of some modules.

    Both rates rise for 1% of the steps and fall to zero over the last 40%. So a training with more steps continues from
    a checkpoint of one with fewer.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float, vector_rate: float, steps: int) -> None:
        given = [p for p in parameters if p.requires_grad]
        self.rates, self.steps, self.done = (rate, vector_rate), steps, 0
        self.optimizers = (
            Muon((p for p in given if p.ndim > 1), rate),
            torch.optim.AdamW((p for p in given if p.ndim == 1), vector_rate, betas=(0.8, 0.99), weight_decay=0.0),
        )

    def step(self) -> None:
        share = min(1.0, (self.done + 1) / (0.01 * self.steps), (self.steps - self.done) / (0.4 * self.steps))
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = share * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.done += 1

    def state_dict(self) -> dict:
        return {"optimizers": [o.state_dict() for o in self.optimizers], "done": self.done}

    def load_state_dict(self, state: dict) -> None:
        self.done = state["done"]
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
