"""How, not what: the device, the precision and the batch sizes. None of it belongs to the algorithm."""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from music_ddpo import parallel
from music_ddpo.errors import UserError
from music_ddpo.generator import Conditioning, Generator
from music_ddpo.params import ComputeParams

# What `auto` means at most: clips sampled, (trajectory, step) pairs updated, and clips decoded at once. Larger ones
# gain nothing more on a CPU. With guidance a pair is two rows of the UNet.
AUTO = {"cpu": (32, 32, 2), "cuda": (64, 32, 8), "mps": (64, 32, 8)}
SHARE = 1 / 3  # of the memory, for what an update keeps for its backward pass
ENOUGH = 8e9  # bytes of it that `auto` never exceeds, so that a run fits the same on a larger card
KINDS = ("sample_batch", "update_batch", "decode_batch")


@dataclass
class Execution:
    """Where and in which portions the work is done.

    Attributes
    ----------
    sample_batch, update_batch, decode_batch
        Clips sampled, (trajectory, step) pairs updated, and clips decoded and scored at once.
    automatic
        Those of the three that `fit` may still make smaller.
    """

    device: torch.device
    dtype: torch.dtype
    sample_batch: int
    update_batch: int
    decode_batch: int
    automatic: tuple[str, ...] = ()

    def fit(self, generator: Generator, conditioning: Conditioning, duration: float, guidance_scale: float) -> None:
        """Makes the automatic batches of sampling and updating fit the memory that this machine has in all.

        In all, not at present: the same params give the same batches, and so the same bits.
        """
        wanted = [kind for kind in self.automatic if kind != "decode_batch"]
        if not wanted:
            return
        budget = min(SHARE * total_memory(self.device), ENOUGH) / parallel.local_processes(self.device)
        taken = []
        if out_of_memory(lambda: taken.append(bytes_for_backward(generator, conditioning, duration, guidance_scale))):
            taken = [budget]  # one at a time, if that
        fits = max(1, int(budget / taken[0]))
        fits = 1 << (fits.bit_length() - 1)  # the power of two below
        room = {"update_batch": fits, "sample_batch": 4 * fits}  # sampling keeps nothing
        for kind in wanted:
            setattr(self, kind, min(getattr(self, kind), room[kind]))

    def halve(self, kind: str) -> None:
        """Makes a batch smaller after memory ran out, with a warning; `UserError` if it is 1 already."""
        size = getattr(self, kind)
        clear_device_cache(garbage_collection=True)
        if size == 1:
            raise UserError(
                f"compute.{kind}: the memory of {self.device} is full even with 1; take a shorter duration, a smaller "
                "model or a device with more memory."
            )
        setattr(self, kind, size // 2)
        warnings.warn(
            f"the memory of {self.device} is full; going on with compute.{kind} {size // 2} instead of {size}",
            stacklevel=2,
        )

    def each(self, kind: str, count: int, work: Callable[[slice], object]) -> None:
        """Calls `work` on portions of `count` rows; where memory runs out, halves them and does that one again."""
        start = 0
        while start < count:
            part = slice(start, min(start + getattr(self, kind), count))
            if out_of_memory(work, part):
                self.halve(kind)
            else:
                start = part.stop


def out_of_memory(work: Callable[..., object], *arguments) -> bool:
    """Does the work; whether memory ran out in it. By then all that it held is free again."""
    try:
        work(*arguments)
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return True
    return False


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
    given = {kind: getattr(compute, kind) for kind in KINDS}
    sizes = [AUTO[device.type][i] if size == "auto" else size for i, size in enumerate(given.values())]
    automatic = tuple(kind for kind, size in given.items() if size == "auto")
    return Execution(parallel.own_device(device), getattr(torch, precision), *sizes, automatic)


def total_memory(device: torch.device) -> int:
    """Bytes of memory that a device has in all."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    given = limit.read_text().strip() if limit.is_file() else ""
    return min(psutil.virtual_memory().total, int(given) if given.isdigit() else sys.maxsize)


def bytes_for_backward(generator: Generator, conditioning: Conditioning, duration: float, guidance_scale: float) -> int:
    """What one (trajectory, step) pair keeps in memory from the UNet's forward for its backward pass."""
    kept = {}
    frozen = {p.untyped_storage().data_ptr() for p in generator.unet.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    latents = torch.zeros(1, *generator.latent_shape(duration), device=generator.device, requires_grad=True)
    timesteps = torch.zeros(1, dtype=torch.long)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        generator.predict_noise(latents, timesteps, conditioning.rows(torch.zeros(1, dtype=torch.long)), guidance_scale)
    return sum(kept.values())


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
