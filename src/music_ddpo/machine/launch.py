"""Several processes on this machine, started by torch's elastic launcher, and one message if they fail."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile

import torch
from accelerate.utils import patch_environment
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, get_error_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from music_ddpo.core.errors import UserError
from music_ddpo.machine.processes import ConnectionLostError
from music_ddpo.machine.signals import SIGNALS, Interrupted

GRACE = 30  # seconds that the processes have to end after a signal
STARTED = "MUSIC_DDPO_LAUNCHED"  # set in the processes that `launch` starts


def launch(processes: int, device: str) -> None:
    """Runs this script in several processes on this machine.

    Raises
    ------
    UserError
        With the message of the process that failed first, after the others are stopped.
    Interrupted
        After a signal has stopped them.
    """
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"compute.processes: {processes} processes cannot share compute.device {device!r}; use auto.")
    if on_gpu and processes > torch.cuda.device_count():
        raise UserError(
            f"compute.processes: {processes} is more than the {torch.cuda.device_count()} CUDA device(s) of this "
            "machine, and each process needs one."
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", max(1, cores // processes))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="music-ddpo", max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", shutdown_timeout=GRACE,
        signals_to_handle=",".join(s.name for s in SIGNALS),
    )  # fmt: skip
    logging.disable(logging.CRITICAL)  # the launcher's own report; one line replaces it
    with tempfile.TemporaryDirectory() as logs, patch_environment(**{STARTED: 1, "OMP_NUM_THREADS": threads}):
        config.logs_specs = DefaultLogsSpecs(log_dir=logs)
        try:
            elastic_launch(config, sys.executable)(*sys.argv)
        except SignalException as error:
            raise Interrupted(error.sigval) from None
        except ChildFailedError as error:
            _explain(error.failures, processes)


def report(error: BaseException) -> bool:
    """Hands an exception to the process that started this one, which prints it; False if this was not launched."""
    if STARTED not in os.environ:
        return False
    get_error_handler().record_exception(error)
    return True


def _explain(failures: dict[int, ProcessFailure], processes: int) -> None:
    """Raises the message of the failure that caused the others."""

    def told(failure: ProcessFailure) -> tuple[str, str]:
        message = failure.message["message"] if isinstance(failure.message, dict) else ""
        kind, _, text = message.partition(": ")
        return kind, text

    consequences = (ConnectionLostError.__name__, Interrupted.__name__)
    number = min(failures, key=lambda n: (told(failures[n])[0] in consequences, failures[n].timestamp))
    first = failures[number]
    kind, text = told(first)
    if kind == Interrupted.__name__:
        raise Interrupted(first.exitcode - 128)
    if kind in (UserError.__name__, ConnectionLostError.__name__):
        raise UserError(text)
    if first.exitcode < 0:
        name = signal.Signals(-first.exitcode).name
        reason = f"was killed by {name}" + (", which the system sends if memory is full" if name == "SIGKILL" else "")
    else:
        reason = f"ended with exit code {first.exitcode}; its messages are above"
    raise UserError(
        f"process {number + 1} of {processes} {reason}. The others are stopped; run again to continue from the last "
        "finished round."
    )
