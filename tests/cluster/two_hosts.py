"""The command of docs/running.md for several machines, between two network namespaces, whose link is then cut.

`make test-cluster` runs it, as root on Linux.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from helpers.machines import need, say, wait_until
from helpers.project import (
    ONE_THREAD,
    PROJECT,
    apart,
    copy_for_stages,
    leftovers,
    messages,
    same_bits,
    set_params,
    succeed,
    trained,
)  # fmt: skip
from music_ddpo.machine.processes import GONE

(COMMAND,) = re.findall(r"^    (torchrun .*?emopia)$", (PROJECT / "docs" / "running.md").read_text(), re.DOTALL | re.M)
COMMAND = COMMAND.replace("--nproc-per-node 8", "--nproc-per-node 1")

RATE = 0.001  # of learning: the size of AdamW's first steps
# Three clips in each minibatch, which two processes cannot share evenly.
SPLIT = {
    "duration": 3, "ddpo__trajectories_per_round": 12, "ddpo__updates_per_round": 4, "ddpo__learning_rate": RATE,
}  # fmt: skip
NAMES = ("music-ddpo-0", "music-ddpo-1")  # of the namespaces, and of the ends of the link


def ip(*command: str) -> None:
    done = subprocess.run(["ip", *command], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(command)}: {done.stderr.strip()}")


@pytest.fixture(scope="module", autouse=True)
def link() -> Iterator[None]:
    """Two hosts, 10.77.0.1 and 10.77.0.2, and a cable."""
    need("ip", packages=("iproute2",))
    made = []
    try:
        for name in NAMES:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", "end-0", "netns", NAMES[0], "type", "veth", "peer", "name", "end-1", "netns", NAMES[1])
        for n, name in enumerate(NAMES):
            ip("-n", name, "address", "add", f"10.77.0.{n + 1}/24", "dev", f"end-{n}")
            for device in ("lo", f"end-{n}"):
                ip("-n", name, "link", "set", device, "up")
        yield
    except OSError as error:
        pytest.skip(f"no network namespaces can be made here: {error}")
    finally:
        for name in made:
            ip("netns", "delete", name)


class Host:
    """One of the two, on which the command runs."""

    def __init__(self, folder: Path, number: int):
        self.said = folder / f"host-{number}.txt"
        env = (
            os.environ | ONE_THREAD | {"NODE": str(number), "FIRST": "10.77.0.1", "GLOO_SOCKET_IFNAME": f"end-{number}"}
        )
        command = ["ip", "netns", "exec", NAMES[number], "bash", "-c", f"exec {COMMAND}"]
        with self.said.open("w") as file:
            self.launcher = subprocess.Popen(command, cwd=folder, env=env, stdout=file, stderr=file)

    def ended(self) -> bool:
        return self.launcher.poll() is not None

    def stage(self) -> psutil.Process:
        """The process that the launcher has started."""
        (process,) = psutil.Process(self.launcher.pid).children()
        return process

    def rounds(self) -> int:
        return self.said.read_text().count(": reward ")


def start(folder: Path) -> tuple[Host, Host]:
    return Host(folder, 0), Host(folder, 1)


@pytest.fixture(scope="module")
def by_two(fetched: Path, tmp_path_factory) -> Path:
    """A project in which two hosts have trained; the second is stopped for a while in the middle of round 2."""
    folder = copy_for_stages(fetched, tmp_path_factory.mktemp("by_two") / "project")
    set_params(folder, **SPLIT)
    say("two hosts: " + COMMAND)
    first, second = start(folder)
    wait_until(lambda: first.rounds() == 1 or first.ended(), 300)
    second.stage().send_signal(signal.SIGSTOP)
    say(f"host 2 does nothing for {GONE + 15} s in round 2")
    time.sleep(GONE + 15)
    assert not first.ended(), first.said.read_text()
    second.stage().send_signal(signal.SIGCONT)
    wait_until(lambda: first.ended() and second.ended(), 300)
    assert first.launcher.returncode == second.launcher.returncode == 0, first.said.read_text()
    return folder


def test_two_hosts_train_the_adapter_that_one_process_does_even_if_one_is_slow(by_two, fetched, tmp_path):
    folder = copy_for_stages(fetched, tmp_path / "project")
    set_params(folder, **SPLIT)
    succeed(folder, "python", "stages/train.py", "emopia", env=ONE_THREAD)
    difference = apart(trained(folder), trained(by_two))
    assert difference.median() < 1e-4 * RATE
    assert difference.max() < 0.1 * RATE
    assert leftovers(by_two) == []
    say(f"two hosts have trained the adapter of one process: its weights differ by {difference.max():.1g} at most")


def test_a_cut_link_ends_both_sides_and_the_rerun_continues(by_two, fetched, tmp_path):
    folder = copy_for_stages(fetched, tmp_path / "project")
    set_params(folder, **SPLIT)
    hosts = start(folder)
    wait_until(lambda: hosts[0].rounds() == 1, 300)
    time.sleep(1)
    ip("-n", NAMES[0], "link", "set", "end-0", "down")
    cut = time.monotonic()
    say("two hosts: the link is cut in round 2")
    for host in hosts:
        wait_until(host.ended, 120)
        (line,) = (line for line in messages(host.said.read_text()) if line.startswith("Error"))
        say(f"ended after at most {time.monotonic() - cut:.0f} s with code {host.launcher.returncode}. {line}")
        assert host.launcher.returncode == 1
        assert "lost the connection" in line
    assert hosts[0].rounds() == 1

    ip("-n", NAMES[0], "link", "set", "end-0", "up")
    hosts = start(folder)
    wait_until(lambda: all(host.ended() for host in hosts), 300)
    assert [host.launcher.returncode for host in hosts] == [0, 0], hosts[0].said.read_text()
    assert hosts[0].rounds() == 1  # the second
    assert same_bits(trained(folder), trained(by_two))
    assert leftovers(folder) == []
    say("the rerun did round 2 alone, and the adapter has the bits of the uninterrupted one")
