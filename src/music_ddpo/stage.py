"""What the stage scripts share: checked params in, one clear line on error, cost out."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import click
from huggingface_hub import constants

from music_ddpo import interruption
from music_ddpo.errors import UserError
from music_ddpo.files import write_json
from music_ddpo.interruption import Interrupted
from music_ddpo.params import load

MODELS = Path("models")
CHECKPOINTS = Path(".checkpoints")  # outside the outputs, which DVC removes before a stage runs


def stage(function: Callable[..., None]) -> click.Command:
    """Makes a click command of `function(params, ...)`, run from the project's folder.

    It writes what the run cost to metrics/cost/<name>.json, and turns a `UserError` into one line on
    standard error and exit code 1, a signal to stop into one line and exit code 128 + its number.
    """
    return _command(function, in_parallel=False)


def parallel_stage(function: Callable[..., None]) -> click.Command:
    """The same, for a stage that shares its work among `compute.processes` processes, of which the first one writes."""
    return _command(function, in_parallel=True)


def _command(function: Callable[..., None], in_parallel: bool) -> click.Command:
    @wraps(function)
    def run(**arguments: str) -> None:
        warnings.showwarning = _one_line
        interruption.watch()
        started = time.perf_counter()
        name = "-".join([function.__name__.strip("_"), *arguments.values()])
        constants.HF_HUB_OFFLINE |= name != "fetch"  # the one stage that may need the hub
        try:
            params = load()
            if in_parallel:
                from music_ddpo import parallel  # late, for it needs torch

                if params.compute.processes > 1 and not parallel.launched():
                    return parallel.launch(params.compute.processes, params.compute.device)
                parallel.join(params.compute.device)
            function(params, **arguments)
            cost = _cost(started)
            if cost:
                write_json(f"metrics/cost/{name}.json", cost)
            if in_parallel:
                parallel.leave()
        except (UserError, Interrupted) as error:
            interruption.ignore()
            _tell(name, error)
            sys.exit(128 + error.number if isinstance(error, Interrupted) else 1)
        interruption.ignore()

    return click.command(help=function.__doc__)(run)


def _tell(name: str, error: UserError | Interrupted) -> None:
    """On standard error; what `parallel.launch` has started tells it to the process that did, which speaks for all."""
    if "MUSIC_DDPO_LAUNCHER" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
    elif not isinstance(error, Interrupted):
        click.echo(f"Error: {error}", err=True)
    elif os.environ.get("RANK", "0") == "0":  # all processes stop at once
        click.echo(f"{name}: {error}", err=True)


def earlier(path: Path | str) -> Path:
    """The path of what an earlier stage writes; `UserError` if it is not there."""
    if not Path(path).is_file():
        raise UserError(f"{path}: not found; run `dvc repro`, which writes it.")
    return Path(path)


def read_json(path: Path | str) -> dict:
    """What an earlier stage wrote as JSON; `UserError` if it is not there or damaged."""
    try:
        content = json.loads(earlier(path).read_text())
        if isinstance(content, dict):
            return content
    except ValueError:
        pass
    raise UserError(f"{path}: is damaged; remove it and run `dvc repro` to have it written anew.")


def study_seed() -> int:
    """The seed that stage `seed` has settled."""
    path = "metrics/seed.json"
    seed = read_json(path).get("seed")
    if not isinstance(seed, int):
        raise UserError(f"{path}: holds no seed; run `dvc repro -f seed` to write it anew.")
    return seed


def _one_line(message, category, filename, lineno, file=None, line=None) -> None:
    if issubclass(category, UserWarning):
        click.echo(f"Warning: {message}", err=True)


def _cost(started: float) -> dict[str, float] | None:
    """Seconds, and the peak memory of the process that took most; only the first of several processes has it."""
    import torch  # late: `seed` and errors in params.yaml need not wait for it

    from music_ddpo import parallel

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    peaks = parallel.gather([(peak, torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)])
    memory, gpu_memory = (max(values) for values in zip(*peaks, strict=True))
    cost = {"seconds": round(time.perf_counter() - started, 1), "peak_memory_gb": round(memory / 1e9, 2)}
    if torch.cuda.is_available():
        cost["peak_gpu_memory_gb"] = round(gpu_memory / 1e9, 2)
    return cost if parallel.is_main() else None
