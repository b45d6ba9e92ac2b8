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


class Job:
    """A stage that runs in one or several processes."""

    def __init__(self, workers: list, said: list[Path]):
        self.workers, self.said = workers, said

    def alive(self) -> bool:
        """Whether the first process runs."""
        return self.workers[0].is_alive()

    def signal(self, number: int) -> None:
        """Sends a signal to the first process."""
        os.kill(self.workers[0].pid, number)

    def wait(self) -> Ended:
        """How the first process ends."""
        return self.wait_all()[0]

    def wait_all(self) -> list[Ended]:
        """How all processes end."""
        for worker in self.workers:
            worker.join(DEADLINE)
            worker.kill()
            worker.join()
        return [Ended(w.exitcode, path.read_text()) for w, path in zip(self.workers, self.said, strict=True)]


def start_stage(folder: Path, *command: str, processes: int = 1, first: Callable = int, given: tuple = ()) -> Job:
    """Starts a stage like the launcher's workers do, with one thread in each.

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
    return Job(workers, said)


def run_stage(folder: Path, *command: str, processes: int = 1, first: Callable = int, given: tuple = ()) -> list[Ended]:
    """The same, until it has ended."""
    return start_stage(folder, *command, processes=processes, first=first, given=given).wait_all()


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
