"""What every stage script shares: checked params as input, one clear line on an error, the cost as output."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from huggingface_hub import constants

from music_ddpo.core.errors import UserError, quoted
from music_ddpo.core.files import write_json
from music_ddpo.core.params_file import load
from music_ddpo.machine import signals
from music_ddpo.machine.signals import Interrupted


def stage(function: Callable[..., None]) -> click.Command:
    """Makes a click command of `function(params, ...)`, to be run from the project's folder.

    The command writes what the run cost to metrics/cost/<name>.json. A `UserError` becomes one line on standard error
    and exit code 1; a signal becomes one line and exit code 128 + its number.
    """
    return _command(function, in_parallel=False)


def parallel_stage(function: Callable[..., None]) -> click.Command:
    """The same, for a stage that shares its work among `compute.processes` processes; the first one writes."""
    return _command(function, in_parallel=True)


def _command(function: Callable[..., None], in_parallel: bool) -> click.Command:
    @wraps(function)
    def run(**arguments: str) -> None:
        warnings.showwarning = _one_line
        signals.watch()
        started = time.perf_counter()
        name = "-".join([function.__name__.strip("_"), *arguments.values()])
        constants.HF_HUB_OFFLINE |= name != "fetch"  # the only stage that may need the hub
        try:
            params = load()
            reward = arguments.get("reward", params.rewards[0])
            if reward not in params.rewards:
                raise UserError(
                    f"{quoted(reward)} is not among `rewards` ({', '.join(params.rewards)}) in params.yaml."
                )
            if in_parallel:
                from music_ddpo.machine import launch, processes  # late, because they import torch

                if params.compute.processes > 1 and not processes.launched():
                    return launch.launch(params.compute.processes, params.compute.device)
                processes.join(params.compute.device)
            function(params, **arguments)
            signals.ignore()  # the results are written
            _write_cost(f"metrics/cost/{name}.json", started)
            if in_parallel:
                processes.leave()
        except (UserError, Interrupted) as error:
            signals.ignore()
            _tell(name, error)
            sys.exit(128 + error.number if isinstance(error, Interrupted) else 1)

    return click.command(help=function.__doc__)(run)


def _tell(name: str, error: UserError | Interrupted) -> None:
    if "torch" in sys.modules:
        from music_ddpo.machine import launch

        if launch.report(error):
            return
    if not isinstance(error, Interrupted):
        click.echo(f"Error: {error}", err=True)
    elif os.environ.get("RANK", "0") == "0":  # a signal stops all processes at once
        click.echo(f"{name}: {error}", err=True)


def _one_line(message: Any, category: type, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    if issubclass(category, UserWarning):
        click.echo(f"Warning: {message}", err=True)


def _write_cost(path: str, started: float) -> None:
    """Seconds, and the peak memory of the process that took most of it."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    gpu_memory = 0
    if "torch" in sys.modules:
        import torch

        from music_ddpo.machine import processes

        own = (memory, torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)
        memory, gpu_memory = (max(peaks) for peaks in zip(*processes.gather([own]), strict=True))
        if not processes.is_main():
            return
    cost = {"seconds": round(time.perf_counter() - started, 1), "peak_memory_gb": round(memory / 1e9, 2)}
    if gpu_memory:
        cost["peak_gpu_memory_gb"] = round(gpu_memory / 1e9, 2)
    write_json(path, cost)
