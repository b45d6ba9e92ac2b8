"""One process or several: which rows each one does, and how the results are combined. It uses accelerate.

Every function also works in a single process, without communication.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn
from torch.distributed.constants import default_pg_nccl_timeout

from music_ddpo.core.errors import UserError, in_one_line

T = TypeVar("T")
SLOW = timedelta(days=7)  # the longest wait for a process that computes
GONE = 60  # seconds without an answer from a machine after which its connections are closed


class ConnectionLostError(UserError):
    """Another process has ended, whose own message gives the reason, or its machine cannot be reached."""


def launched() -> bool:
    """Whether this is one of several processes, started by `launch`, by `accelerate launch` or by `torchrun`."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def join(device: str) -> None:
    """Connects to the other processes, if there are any. Called first in each, with `compute.device`."""
    if launched():
        with warnings.catch_warnings(action="ignore"):  # about the number of threads, which OMP_NUM_THREADS sets
            if device == "cpu" or not torch.cuda.is_available():
                PartialState(cpu=True)
            else:  # objects are sent with gloo, which detects a process that has died
                PartialState(backend="cuda:nccl,cpu:gloo", timeout=default_pg_nccl_timeout)
        _wait_for_who_can_be_reached()


def _wait_for_who_can_be_reached() -> None:
    """Makes gloo wait for a process that computes much longer than this one, but not for a machine that is gone.

    A process that ends closes its connections; a machine that fails, or a cut network, does not. A timeout cannot tell
    that from hours of computing. The kernel can: it answers probes for its processes, be they busy or stopped.
    """
    gloo = torch.distributed.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
    gloo._set_default_timeout(SLOW)  # torch's public functions would set NCCL's as well
    if sys.platform != "linux":
        return
    for connection in psutil.Process().net_connections("tcp"):  # torch does not give access to them
        if connection.status == psutil.CONN_ESTABLISHED:
            with socket.socket(fileno=os.dup(connection.fd)) as same:
                same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                same.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, GONE // 3)
                same.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, GONE // 6)
                same.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * GONE)


def leave() -> None:
    """Disconnects from the other processes."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def rank() -> int:
    """The number of this process; process 0 writes the files."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def size() -> int:
    """The number of processes."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes the files and shows progress."""
    return rank() == 0


def own_device(device: torch.device) -> torch.device:
    """The device of this process: on a machine with several GPUs, each process has one of them."""
    return PartialState().device if size() > 1 and device.type == "cuda" else device


def local_processes(device: torch.device) -> int:
    """How many processes share the memory of this one's device."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if device.type == "cpu" else 1


def own(count: int) -> range:
    """Which of `count` rows this process does: a contiguous part; the sizes differ by one at most."""
    return range(rank() * count // size(), (rank() + 1) * count // size())


def gather(rows: list[T]) -> list[T]:
    """The rows of all processes, ordered by process."""
    return _collective(gather_object, rows) if size() > 1 else rows


def gather_to_main(rows: list[T]) -> list[T]:
    """The rows of all processes in process 0, ordered by process; an empty list in the others."""
    if size() == 1:
        return rows
    into: list[Any] | None = [None] * size() if is_main() else None
    _collective(torch.distributed.gather_object, rows, into)
    return [row for part in into for row in part] if into else []


def broadcast(content: T) -> T:
    """The content that process 0 gives."""
    return _collective(broadcast_object_list, [content])[0] if size() > 1 else content


def add_gradients(parameters: list[nn.Parameter]) -> None:
    """Replaces each process's gradients by the sum over all processes."""
    if size() == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    summed = _collective(reduce, torch.cat([g.flatten() for g in gradients]), "sum")
    for parameter, gradient in zip(parameters, summed.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = gradient.view_as(parameter).clone()


def _collective(operation: Callable, *arguments: Any) -> Any:
    try:
        return operation(*arguments)
    except RuntimeError as error:
        if should_reduce_batch_size(error):  # out of memory
            raise
        raise ConnectionLostError(
            f"process {rank() + 1} of {size()} lost the connection to another one, which has ended or cannot be "
            f"reached ({in_one_line(error)}). Run again: finished rounds are kept."
        ) from error
