"""How much memory a piece of work needs."""

from __future__ import annotations

import ctypes
import platform
import resource
import sys
import threading

import psutil
import torch

INTERVAL = 0.005  # seconds between two readings of the process's memory


class PeakMemory:
    """Measures the most memory that a `with` block needs on top of what is in use at its start.

    On a GPU this is its memory, otherwise the resident memory of the process.

    Attributes
    ----------
    needed
        Bytes at the peak.
    kept
        Bytes that are still in use at the end.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.needed = self.kept = 0

    def __enter__(self) -> PeakMemory:
        self._start = self._peak = in_use(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._ended = threading.Event()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self._peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self._ended.set()
            self._thread.join()
        end = in_use(self.device)
        self.needed = max(self._peak, end) - self._start
        self.kept = max(0, end - self._start)

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._ended.wait(INTERVAL):
            self._peak = max(self._peak, process.memory_info().rss)


def in_use(device: torch.device) -> int:
    """Bytes in use: allocated on a GPU, otherwise resident, after what was freed is returned to the system."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)
    return psutil.Process().memory_info().rss


def peak(device: torch.device) -> int:
    """The most bytes in use at a time since the process has started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
