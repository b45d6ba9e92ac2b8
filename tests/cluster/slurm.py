"""The batch file of docs/running.md in a real Slurm of two nodes on this machine, which interrupts a training.

`make test-cluster` runs it, as root on Debian or a system like it. Slurm's own services are left alone.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.machines import need, say, wait_until
from helpers.project import ONE_THREAD, PROJECT, leftovers, same_bits, set_params, succeed, trained

(BATCH,) = re.findall(
    r"```bash\n(#!/bin/bash\n#SBATCH .*?)```", (PROJECT / "docs" / "running.md").read_text(), re.DOTALL
)

# Nodes with more cores than this machine has, and with four GPUs that are none: the batch file runs as it is.
CONFIG = """
ClusterName=test
SlurmctldHost={name}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5  # a requeued job waits so long, in seconds
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=one NodeHostname={name} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 Gres=gpu:4
NodeName=two NodeHostname={name} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 Gres=gpu:4
PartitionName=normal Nodes=one,two PriorityTier=1 Default=YES
PartitionName=urgent Nodes=one,two PriorityTier=2
"""
GPUS = "NodeName=one,two Name=gpu File=/dev/tty[1-4]\n"


class Slurm:
    """A running cluster."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, *command: str, env: dict[str, str] | None = None) -> str:
        """Runs one of Slurm's commands, in the project's folder; its output."""
        env = {"SLURM_CONF": str(self.folder / "slurm.conf")} | (env or {})
        return succeed(self.folder / "project", *command, env=env).strip()

    def state(self, job: str) -> str:
        return self("squeue", "--noheader", "--states=all", "--jobs", job, "--format=%T %N")


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    need("slurmctld", "slurmd", "munged", packages=("slurm-wlm", "munge"))
    free = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    config = CONFIG.format(folder=tmp_path, name=socket.gethostname(), ports=[s.getsockname()[1] for s in free])
    for one in free:
        one.close()
    (tmp_path / "slurm.conf").write_text(config)
    (tmp_path / "gres.conf").write_text(GPUS)
    for name in ("state", "one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "munge").mkdir(mode=0o700)
    (tmp_path / "munge" / "key").touch(mode=0o600)
    (tmp_path / "munge" / "key").write_bytes(os.urandom(128))
    files = [f"--{name}-file={tmp_path}/munge/{name}" for name in ("key", "pid", "seed")]
    daemons = []
    with (tmp_path / "daemons.txt").open("w") as log:
        for command in (
            ["munged", "--foreground", "--force", f"--socket={tmp_path}/munge.socket", *files],
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", "one"],
            ["slurmd", "-D", "-N", "two"],
        ):
            environment = os.environ | {"SLURM_CONF": str(tmp_path / "slurm.conf")}
            daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(1)
    (tmp_path / "project").mkdir()
    cluster = Slurm(tmp_path)
    try:
        wait_until(
            lambda: cluster("sinfo", "--noheader", "--states=idle", "--format=%D", "--partition=normal") == "2", 30
        )
        yield cluster
        cluster("scancel", "--user=root")
        wait_until(lambda: not cluster("squeue", "--noheader"), 60)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)


def test_a_job_that_slurm_interrupts_again_and_again_trains_the_bit_identical_adapter(fetched, slurm):
    folder = slurm.folder / "project"
    shutil.copytree(fetched, folder, symlinks=True, dirs_exist_ok=True)
    set_params(folder, rewards=["emopia"], ddpo__rounds=5)
    succeed(folder, "python", "stages/train.py", "emopia", env=ONE_THREAD)
    expected = trained(folder)
    shutil.rmtree(folder / "models" / "adapters")

    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "job.sh").write_text(BATCH)
    say(slurm("sbatch", "--version") + ", two nodes; the batch file:\n" + BATCH)
    job = slurm("sbatch", "--parsable", "job.sh", env=ONE_THREAD)
    output = folder / f"slurm-{job}.out"

    def rounds() -> int:
        return output.read_text().count(": reward ") if output.is_file() else 0

    def interrupt(after: int, *command: str) -> None:
        """Does that in the middle of a round, and waits until the job runs again."""
        wait_until(lambda: rounds() >= after, 600)
        time.sleep(1)
        say(f"{rounds()} of 5 rounds, {slurm.state(job)}: {' '.join(command)}")
        slurm(*command)
        wait_until(lambda: "PENDING" in slurm.state(job), 120)
        say("stopped and in the queue again")

    wait_until(lambda: slurm.state(job) == "RUNNING one", 60)
    slurm("scontrol", "update", "NodeName=one", "State=DRAIN", "Reason=test")  # the job will have to move
    interrupt(1, "scontrol", "requeue", job)
    wait_until(lambda: slurm.state(job) == "RUNNING two", 120)
    slurm("scontrol", "update", "NodeName=one", "State=RESUME")
    interrupt(2, "sbatch", "--partition=urgent", "--nodes=2", "--gres=gpu:4", "--wrap=sleep 1")
    wait_until(lambda: "RUNNING" in slurm.state(job), 120)
    wait_until(lambda: rounds() == 3, 600)
    slurm("scancel", "--signal=STOP", job)  # Slurm looks at time limits twice a minute; the round shall not end before
    interrupt(3, "scontrol", "update", f"JobId={job}", "TimeLimit=2")
    slurm("scontrol", "update", f"JobId={job}", "TimeLimit=720")
    wait_until(lambda: "COMPLETED" in slurm.state(job), 900)

    say(f"{slurm.state(job)}; what the job printed about it:")
    told = r"slurmstepd.*JOB.*DUE TO.*|train emopia, round ./5: reward.*|train-emopia: .*"
    say("\n".join(re.findall(told, output.read_text().replace("\r", "\n"))))
    assert rounds() == 5  # none was done twice
    assert output.read_text().count("train-emopia: stopped by SIGTERM; finished work is kept") == 3
    assert same_bits(trained(folder), expected)
    assert leftovers(folder) == []
    say("the adapter has the bits of one that was trained without interruption")
