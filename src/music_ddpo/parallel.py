"""One process or many: who does which rows, and how the results come together. The engine is accelerate.

Every function here gives in a single process what it gives in many, without talking to anybody.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, patch_environment, reduce
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from music_ddpo.errors import UserError
from music_ddpo.interruption import SIGNALS, Interrupted

GRACE = 90  # seconds that processes get, once a signal has come, to make a checkpoint


class ConnectionLostError(UserError):
    """Another process has ended; what it said, and not this, tells why."""


def launched() -> bool:
    """Whether this is one of several processes: of `launch`, or of `accelerate launch` or `torchrun` by hand."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def join(device: str) -> None:
    """Meets the other processes, if there are any; to be called first in each, with params.yaml's device."""
    if launched():
        with warnings.catch_warnings(action="ignore"):  # of threads that it sets where OMP_NUM_THREADS does not
            if device == "cpu" or not torch.cuda.is_available():
                PartialState(cpu=True)
            else:  # what is no tensor goes by gloo, which notices a process that has died
                PartialState(backend="cuda:nccl,cpu:gloo")


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


def gather_to_main(rows: list) -> list:
    """The rows of all processes in process 0, in the order of their ranks; none in the others."""
    if size() == 1:
        return rows
    into = [None] * size() if is_main() else None
    _collective(torch.distributed.gather_object, rows, into)
    return [row for part in into for row in part] if is_main() else []


def broadcast(content: Any) -> Any:
    """What process 0 gave."""
    return _collective(broadcast_object_list, [content])[0] if size() > 1 else content


def total(values: Iterable[float]) -> list[float]:
    """The sum of each value over all processes."""
    values = torch.tensor(list(values), dtype=torch.float64)
    if size() > 1:
        values = _collective(reduce, values, "sum")
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
        if should_reduce_batch_size(error):  # it has memory for no more
            raise
        raise ConnectionLostError(
            f"process {rank() + 1} of {size()} lost the connection to another one, which must have ended "
            f"({str(error).splitlines()[0]})."
        ) from error


def launch(processes: int, device: str) -> None:
    """Runs this very script in several processes, on this machine.

    Raises
    ------
    UserError
        What the process that failed first had to say, once the others are stopped.
    Interrupted
        Once a signal has stopped them, with what they kept.
    """
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"compute.processes: {processes} processes cannot share compute.device {device!r}; use auto.")
    if on_gpu and processes > torch.cuda.device_count():
        raise UserError(
            f"compute.processes: {processes} were asked for, but this machine has {torch.cuda.device_count()} CUDA "
            "device(s), and each process needs one."
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", max(1, cores // processes))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="music-ddpo", max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", shutdown_timeout=GRACE,
        signals_to_handle=",".join(s.name for s in SIGNALS),
    )  # fmt: skip
    logging.disable(logging.CRITICAL)  # what the launcher has to say is said below, in one line
    with tempfile.TemporaryDirectory() as logs, patch_environment(MUSIC_DDPO_LAUNCHER=1, OMP_NUM_THREADS=threads):
        config.logs_specs = DefaultLogsSpecs(log_dir=logs)
        try:
            elastic_launch(config, sys.executable)(*sys.argv)
        except SignalException as error:
            kept = [_said(json.loads(p.read_text())["message"]) for p in sorted(Path(logs).rglob("error.json"))]
            raise Interrupted(error.sigval, next((text for kind, text in kept if kind is Interrupted), "")) from None
        except ChildFailedError as error:
            _explain(error.failures, processes)


def _said(message: dict[str, Any] | str) -> tuple[type[BaseException] | None, str]:
    """What a process has left in its error file: the kind, if it is ours, and the text (or what a stop has kept)."""
    told = message["message"] if isinstance(message, dict) else ""
    kind, _, text = told.partition(": ")
    ours = {k.__name__: k for k in (UserError, ConnectionLostError, Interrupted)}
    return ours.get(kind), text.partition("; ")[2] if kind == Interrupted.__name__ else text


def _explain(failures: dict[int, ProcessFailure], processes: int) -> None:
    """Raises what the first failure says that has a cause of its own."""
    follows = (ConnectionLostError, Interrupted)  # from another process's end; the latter may come by itself, too
    said = {rank: _said(failure.message)[0] for rank, failure in failures.items()}
    number = min(failures, key=lambda rank: (said[rank] in follows, said[rank] is follows[0], failures[rank].timestamp))
    first = failures[number]
    kind, text = _said(first.message)
    if kind is Interrupted:
        raise Interrupted(first.exitcode - 128, text)
    if kind is not None:
        raise UserError(text)
    if first.exitcode < 0:
        name = signal.Signals(-first.exitcode).name
        reason = f"was killed by {name}" + (", as the system does when memory is full" if name == "SIGKILL" else "")
    else:
        reason = f"ended with exit code {first.exitcode}; what it said is above"
    raise UserError(
        f"process {number + 1} of {processes} {reason}. The others are stopped; run again to go on from the last "
        "checkpoint."
    )
