"""Every random tensor comes from a generator seeded by what it is for, never from global state."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str, epoch: int = 0, index: int = 0) -> torch.Generator:
    """A CPU generator for (seed, purpose, epoch, sample index).

    So a result does not depend on batch sizes or on the number of processes, resuming needs no saved state,
    and two runs that share the four share the noise.
    """
    key = f"{seed}/{purpose}/{epoch}/{index}".encode()
    number = int.from_bytes(hashlib.sha256(key).digest()[:8], "little", signed=True)
    return torch.Generator().manual_seed(number)
