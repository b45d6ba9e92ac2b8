"""How, not what: the device, the precision and the batch sizes. None of it belongs to the algorithm."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from music_ddpo.errors import UserError
from music_ddpo.params import ComputeParams

# What `auto` means. On a CPU larger batches gain nothing more once its cores are busy.
AUTO = {"cpu": (32, 32, 8), "cuda": (16, 8, 8), "mps": (16, 8, 8)}


@dataclass(frozen=True)
class Execution:
    """Where and in which portions the work is done.

    Attributes
    ----------
    sample_batch, update_batch, decode_batch
        Clips sampled, (trajectory, step) pairs updated, and clips decoded at once.
    """

    device: torch.device
    dtype: torch.dtype
    sample_batch: int
    update_batch: int
    decode_batch: int


def choose(compute: ComputeParams) -> Execution:
    """Turns `auto` into what this machine has; `UserError` for a device that is not there."""
    name = compute.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        has = "no CUDA device" if not found else f"{found} CUDA device(s), counted from 0"
        raise UserError(f"compute.device: {name!r} was asked for, but this machine has {has}; use auto or cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("compute.device: 'mps' was asked for, but this machine has none; use auto or cpu.")
    precision = compute.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    if device.type == "cpu":
        _keep_freed_memory()
    auto = AUTO[device.type]
    sizes = (compute.sample_batch, compute.update_batch, compute.decode_batch)
    return Execution(
        device, getattr(torch, precision), *(a if s == "auto" else s for s, a in zip(sizes, auto, strict=True))
    )


def _keep_freed_memory() -> None:
    """Lets glibc keep what tensors free: it would hand each large one to the kernel, and fault it in again.

    Without this, decoding a batch of clips on a CPU is slower than decoding them one by one.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(mmap_threshold, 1 << 30)
            mallopt(trim_threshold, (1 << 31) - 1)


def portions(count: int, size: int) -> Iterator[slice]:
    """Slices that cut `count` rows into portions of at most `size`."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
