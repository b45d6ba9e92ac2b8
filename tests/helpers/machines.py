"""What the tests of several machines share: the programs they need, waiting, and telling what happens."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable

import pytest

STARTED = time.monotonic()


def need(*programs: str, packages: tuple[str, ...]) -> None:
    """Installs Debian's packages if one of the programs is missing; skips the test where that cannot be done."""
    if os.geteuid() != 0:
        pytest.skip(f"{programs[0]} needs root")
    if all(map(shutil.which, programs)):
        return
    if not shutil.which("apt-get"):
        pytest.skip(f"{programs[0]} is missing, and there is no apt-get to install it")
    quiet = {"env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, "capture_output": True, "text": True}
    subprocess.run(["apt-get", "update"], **quiet)
    done = subprocess.run(["apt-get", "install", "--yes", "--no-install-recommends", *packages], **quiet)
    if done.returncode:
        pytest.skip(f"{' '.join(packages)} cannot be installed: {done.stderr.strip().splitlines()[-1]}")


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Waits for something that must happen within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds:g} s"
        time.sleep(0.2)


def say(text: str) -> None:
    """Prints what happens, with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED:4.0f} s] {text}", flush=True)
