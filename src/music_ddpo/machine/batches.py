"""The device, the precision, and how many clips are processed at once."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import psutil
import torch
from accelerate.utils.memory import find_executable_batch_size, should_reduce_batch_size
from torch import nn

from music_ddpo.core.errors import UserError
from music_ddpo.core.params import AUTO_PRECISION, ComputeParams
from music_ddpo.machine import processes

# The upper bounds of `auto`: clips sampled and trained at once, and clips decoded and scored at once. With guidance a
# clip is two rows of the UNet. Larger batches gain nothing on a CPU.
AUTO = {"cpu": (32, 2), "cuda": (32, 8), "mps": (32, 8)}
SHARE = 1 / 3  # of the memory, for the activations that an update keeps for its backward pass
ENOUGH = 8e9  # bytes of activations that `auto` never exceeds, so that a larger card gives the same batches

Rows = TypeVar("Rows", bound=Sequence)


@dataclass
class Execution:
    """Where the work is done and in which batches.

    Attributes
    ----------
    device, dtype
        Of the UNet.
    batch
        Clips that are sampled together, and trained together.
    decode_batch
        Clips that are decoded and scored together.
    automatic
        Whether `fit` may reduce `batch`.
    """

    device: torch.device
    dtype: torch.dtype
    batch: int
    decode_batch: int
    automatic: bool = False

    def fit(self, step: Callable[[int], object], most: int, unet: nn.Module | None = None) -> None:
        """Tries the batch before the first round; reduces an automatic one to what fits. The same in every process.

        Parameters
        ----------
        step
            One pass of so many clips, like those that follow.
        most
            More clips than this are never processed together.
        unet
            If given, an automatic batch is also limited by what autograd saves in a `step` of one clip, without the
            parameters of this module. The limit comes from all the memory of the device, not from what happens to be
            free, so the same params give the same batches and bits.

        Raises
        ------
        UserError
            If memory is not enough for the given batch, or for a single clip.
        """
        self.batch = min(self.batch, most)
        if self.automatic and unet is not None:
            budget = min(SHARE * total_memory(self.device), ENOUGH) / processes.local_processes(self.device)
            with full_memory_explained("batch", 1):
                fits = max(1, int(budget / activation_bytes(unet, lambda: step(1))))
            self.batch = min(self.batch, 1 << (fits.bit_length() - 1))  # a power of two
        if not self.automatic:
            with full_memory_explained("batch", self.batch):
                step(self.batch)
            return

        def halve() -> int:
            self.batch //= 2
            return self.batch

        def attempt(batch_size: int) -> None:
            step(batch_size)

        with full_memory_explained("batch", 1):
            find_executable_batch_size(attempt, self.batch, reduce_batch_size_fn=halve)()
        self.batch = min(processes.gather([self.batch]))


def choose(compute: ComputeParams) -> Execution:
    """Turns `auto` into what this machine has; `UserError` for a device that it does not have."""
    name = compute.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        has = "no CUDA device" if not found else f"{found} CUDA device(s), counted from 0"
        raise UserError(f"compute.device: {name!r} is set, but this machine has {has}; use auto or cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("compute.device: 'mps' is set, but this machine has none; use auto or cpu.")
    precision: str = AUTO_PRECISION[device.type] if compute.precision == "auto" else compute.precision
    if device.type == "cpu":
        _keep_freed_memory()
    if device.type == "cuda":
        # As in the reference. Training checks in every round that the importance ratio still starts at exactly 1.
        torch.backends.cuda.matmul.allow_tf32 = True
    batch, decode_batch = AUTO[device.type]
    return Execution(
        processes.own_device(device),
        getattr(torch, precision),
        batch if compute.batch == "auto" else compute.batch,
        decode_batch if compute.decode_batch == "auto" else compute.decode_batch,
        compute.batch == "auto",
    )


@contextmanager
def full_memory_explained(key: str, size: int) -> Iterator[None]:
    """Turns an out-of-memory error into a `UserError` that names the key of `compute` and a value that may fit."""
    try:
        yield
    except RuntimeError as error:
        if not (should_reduce_batch_size(error) or "No executable batch size found" in str(error)):
            raise
        way_out = (
            f"set compute.{key} to {size // 2}"
            if size > 1
            else "use a shorter duration, a smaller model or a device with more memory"
        )
        raise UserError(
            f"compute.{key}: memory ran out with {size} clip(s) at a time; {way_out} and run again. Finished rounds "
            "are kept."
        ) from error


def total_memory(device: torch.device) -> int:
    """Bytes of memory of a device, used or free."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    given = limit.read_text().strip() if limit.is_file() else ""
    return min(psutil.virtual_memory().total, int(given) if given.isdigit() else sys.maxsize)


def activation_bytes(module: nn.Module, step: Callable[[], object]) -> int:
    """Bytes of the tensors that autograd saves for the backward pass in a call of `step`, without the parameters."""
    saved = {}
    parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(saved.values())


def _keep_freed_memory() -> None:
    """Makes glibc keep the memory of freed tensors, instead of returning it to the kernel and requesting it again.

    Without this, decoding a batch of clips on a CPU is slower than decoding them one by one.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(mmap_threshold, 1 << 30)
            mallopt(trim_threshold, (1 << 31) - 1)


def portions(rows: Rows, size: int) -> Iterator[Rows]:
    """Consecutive portions of at most `size` rows."""
    for start in range(0, len(rows), size):
        yield cast(Rows, rows[start : start + size])
