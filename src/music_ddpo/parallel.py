"""One process or many: who does which rows, and how the results come together. The engine is accelerate.

Every function here gives in a single process what it gives in many, without talking to anybody.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import nn
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from music_ddpo.errors import UserError
from music_ddpo.interruption import Interrupted

GRACE = 120  # seconds that processes get, once a signal has come, to make a checkpoint


class ConnectionLostError(UserError):
    """Another process has ended; what it said, and not this, tells why."""


def launched() -> bool:
    """Whether this is one of several processes: of `launch`, or of `accelerate launch` or `torchrun` by hand."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def join(device: str) -> None:
    """Meets the other processes, if there are any; to be called first in each, with params.yaml's device."""
    if launched():
        PartialState(cpu=device == "cpu" or not torch.cuda.is_available())


def leave() -> None:
    """Parts from the other processes."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def rank() -> int:
    """Which of the processes this is; process 0 does the writing."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes and shows progress."""
    return rank() == 0


def own_device(device: torch.device) -> torch.device:
    """The device of this process: of several GPUs, each process of a machine has one."""
    return PartialState().device if size() > 1 and device.type == "cuda" else device


def local_processes(device: torch.device) -> int:
    """How many processes share the memory of this one's device."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if device.type == "cpu" else 1


def own(count: int) -> range:
    """Which of `count` rows this process does: a contiguous part, of a size that differs by one at most."""
    return range(rank() * count // size(), (rank() + 1) * count // size())


def gather(rows: list) -> list:
    """The rows of all processes, in the order of their ranks."""
    return _collective(gather_object, rows) if size() > 1 else rows


def broadcast(content: Any) -> Any:
    """What process 0 gave."""
    return _collective(broadcast_object_list, [content])[0] if size() > 1 else content


def total(values: Iterable[float]) -> list[float]:
    """The sum of each value over all processes."""
    values = torch.tensor(list(values), dtype=torch.float64)
    if size() > 1:
        values = _collective(reduce, values.to(PartialState().device), "sum").cpu()
    return values.tolist()


def add_gradients(parameters: list[nn.Parameter]) -> None:
    """Gives every process the sum of all processes' gradients."""
    if size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:  # this process had nothing to do
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.flatten() for p in parameters])
    summed = _collective(reduce, flat, "sum").split([p.numel() for p in parameters])
    for parameter, grad in zip(parameters, summed, strict=True):
        parameter.grad.copy_(grad.view_as(parameter))


def together(work: Callable[[], Any]) -> Any:
    """What this process's part of the work returns; all raise `Interrupted` here if any did in its part."""
    result, number = None, 0
    try:
        result = work()
    except Interrupted as error:
        number = error.number
    number = max(gather([number]))
    if number:
        raise Interrupted(number)
    return result


def _collective(operation: Callable, *arguments) -> Any:
    try:
        return operation(*arguments)
    except RuntimeError as error:
        raise ConnectionLostError(
            f"process {rank() + 1} of {size()} lost the connection to another one, which must have ended "
            f"({str(error).splitlines()[0]})."
        ) from error


def launch(processes: int, device: str) -> int:
    """Runs this very script in several processes; the exit code to end with.

    Raises
    ------
    UserError
        What the process that failed first had to say, once the others are stopped.
    """
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"compute.processes: {processes} processes cannot share compute.device {device!r}; use auto.")
    if on_gpu and processes > torch.cuda.device_count():
        raise UserError(
            f"compute.processes: {processes} were asked for, but this machine has {torch.cuda.device_count()} CUDA "
            "device(s), and each process needs one."
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="music-ddpo", max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", shutdown_timeout=GRACE,
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    )  # fmt: skip
    logging.disable(logging.CRITICAL)  # what the launcher has to say is said below, in one line
    with tempfile.TemporaryDirectory() as logs:
        config.logs_specs = DefaultLogsSpecs(log_dir=logs)
        try:
            elastic_launch(config, sys.executable)(*sys.argv)
        except SignalException as error:
            return 128 + error.sigval
        except ChildFailedError as error:
            return _explain(error.failures, processes)
    return 0


def _explain(failures: dict[int, ProcessFailure], processes: int) -> int:
    """Raises what the first failure says; or the exit code, where it was a clean end upon a signal."""

    def told(failure: ProcessFailure) -> str:  # in the error file it is nested
        return failure.message["message"] if isinstance(failure.message, dict) else failure.message

    causes = {r: f for r, f in failures.items() if not told(f).startswith(ConnectionLostError.__name__)} or failures
    number, first = min(causes.items(), key=lambda item: item[1].timestamp)
    if isinstance(first.message, dict):
        raise UserError(told(first).partition(": ")[2])
    if first.exitcode > 128:
        return first.exitcode
    which = f"process {number + 1} of {processes}"
    if first.exitcode < 0:
        name = signal.Signals(-first.exitcode).name
        reason = f"was killed by {name}" + (", as the system does when memory is full" if name == "SIGKILL" else "")
    else:
        reason = f"ended with exit code {first.exitcode}; what it said is above"
    raise UserError(f"{which} {reason}. The others are stopped; run again to go on from the last checkpoint.")
