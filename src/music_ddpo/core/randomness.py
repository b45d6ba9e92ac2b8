"""Every random tensor comes from a generator that is seeded by its purpose, never from global state."""

from __future__ import annotations

import hashlib

import torch


def random_generator(seed: int, purpose: str, round: int = 0, index: int = 0) -> torch.Generator:
    """A CPU generator for (seed, purpose, round, sample index).

    A result therefore depends neither on batch sizes nor on the number of processes, a repeated round draws the same
    noise, and two runs that share the four values share the noise.
    """
    key = f"{seed}/{purpose}/{round}/{index}".encode()
    number = int.from_bytes(hashlib.sha256(key).digest()[:8], "little", signed=True)
    return torch.Generator().manual_seed(number)
