"""Weights that are finite numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from music_ddpo.core.errors import UserError


def require_finite(weights: nn.Module | dict[str, torch.Tensor], place: Path | str, way_out: str) -> None:
    """`UserError` if a weight is not finite; it names the weight and the `place` that it comes from."""
    named = weights.state_dict() if isinstance(weights, nn.Module) else weights
    for name, x in named.items():
        if not x.isfinite().all():
            raise UserError(f"{place}: {name} contains numbers that are not finite, so it is damaged; {way_out}.")
