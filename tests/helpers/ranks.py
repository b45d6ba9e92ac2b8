"""Stages in one process or in several connected ones, started quickly: everything is imported once, then forked."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["pandas", "music_ddpo.machine.launch", "music_ddpo.training.setup", "music_ddpo.training.loop",
     "music_ddpo.measuring.judging", "music_ddpo.rewards.held_out", "music_ddpo.rewards.emopia"]
)  # fmt: skip
DEADLINE = 120  # seconds


@dataclass
class Ended:
    """How a process ended, and what it said."""

    code: int
    stderr: str


def run_stage(folder: Path, *command: str, processes: int = 1, first: Callable = int, given: tuple = ()) -> list[Ended]:
    """Runs a stage as the launcher's workers do, with one thread in each; how each of them ended.

    `first(*given)` is called in each of them before.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    said = [folder / f".stderr-{rank}" for rank in range(processes)]
    workers = [
        FORKS.Process(target=_work, args=(rank, processes, port, folder, said[rank], command, first, given))
        for rank in range(processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(DEADLINE)
        worker.kill()
        worker.join()
    return [Ended(worker.exitcode, path.read_text()) for worker, path in zip(workers, said, strict=True)]


def succeed(folder: Path, *command: str, processes: int = 1) -> None:
    """Runs a stage that must succeed."""
    ends = run_stage(folder, *command, processes=processes)
    assert [end.code for end in ends] == [0] * processes, "".join(end.stderr for end in ends)


def _work(rank, processes, port, folder, said, command, first, given) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    os.chdir(folder)
    file = said.open("w")
    os.dup2(file.fileno(), 2)
    sys.stderr = file
    first(*given)
    sys.path.insert(0, "stages")  # as Python does for a script
    sys.argv = [f"stages/{command[0]}.py", *command[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")
