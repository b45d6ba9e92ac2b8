"""Several processes do what one does, up to the order of summation, and end cleanly whatever ends one of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

from helpers.project import (
    ONE_THREAD,
    apart,
    copy_for_stages,
    leftovers,
    messages,
    run,
    same_bits,
    set_params,
    trained,
)  # fmt: skip
from helpers.ranks import run_stage
from music_ddpo.core import audio
from music_ddpo.core.errors import UserError
from music_ddpo.machine import launch, processes

RATE = 0.001  # of learning: the size of AdamW's first steps
# Three clips in each minibatch, which two processes cannot share evenly.
SPLIT = {
    "duration": 3, "ddpo__trajectories_per_round": 12, "ddpo__updates_per_round": 4, "ddpo__learning_rate": RATE,
}  # fmt: skip
TRAIN = ("stages/train.py", "emopia")


@pytest.fixture(scope="module")
def by_two(fetched: Path, tmp_path_factory) -> Path:
    """A project in which two processes have trained, and what they said in the files `said` and `out`; read only."""
    folder = copy_for_stages(fetched, tmp_path_factory.mktemp("by_two") / "project")
    set_params(folder, **SPLIT, compute__processes=2)
    done = run(folder, "python", *TRAIN, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    (folder / "said").write_text(done.stderr)
    (folder / "out").write_text(done.stdout)
    return folder


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def succeed(folder: Path, *command: str, count: int = 1) -> None:
    ends = run_stage(folder, *command, processes=count)
    assert [end.code for end in ends] == [0] * count, "".join(end.stderr for end in ends)


def test_two_processes_train_the_adapter_that_one_does(by_two, stages):
    set_params(stages, **SPLIT)
    succeed(stages, "train", "emopia")

    ours, theirs = trained(stages), trained(by_two)
    assert max(b.abs().max() for key, b in ours.items() if "lora_B" in key) > RATE
    difference = apart(ours, theirs)
    assert difference.median() < 1e-4 * RATE
    assert difference.max() < 0.1 * RATE  # one sign that differs in AdamW's first step would be 2 * RATE
    one, two = (pd.read_csv(folder / "plots" / "train" / "emopia.csv") for folder in (stages, by_two))
    pd.testing.assert_frame_equal(one, two, rtol=0, atol=1e-5)  # rewards are written with 6 places
    one, two = (read(folder / "metrics" / "train" / "emopia.json") for folder in (stages, by_two))
    assert one["clip_fraction"] > 0
    assert two["ratio_error_at_first_update"] == 0
    for key, value in one.items():
        # A pair is 1/96 of the clip fraction, and may lie on the edge. The rest has 4 digits or 6 places.
        assert two[key] == pytest.approx(value, rel=2e-3, abs=1.1 / 96 if key == "clip_fraction" else 2e-6), key


def test_a_process_may_have_no_clip_of_a_minibatch(stages):
    alone = SPLIT | {"ddpo__trajectories_per_round": 4, "ddpo__rounds": 1, "prompts__emotions": ["happy", "sad"]}
    adapters = []
    for count in (1, 2):
        set_params(stages, **alone)
        succeed(stages, "train", "emopia", count=count)
        adapters.append(trained(stages))
        assert read(stages / "metrics" / "train" / "emopia.json")["ratio_error_at_first_update"] == 0
    assert apart(*adapters).median() < 1e-4 * RATE


def test_two_processes_write_once(by_two):
    said = (by_two / "said").read_text()
    assert messages(said) == []
    assert said.count("round 1/2: reward") == 1
    assert (by_two / "out").read_text().count(" rounds of 12 clips will take about ") == 1
    assert leftovers(by_two) == []
    assert read(by_two / "metrics" / "cost" / "train-emopia.json")["seconds"] > 0


def test_torchrun_trains_the_same_adapter_bit_for_bit(by_two, stages):
    set_params(stages, **SPLIT)
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *TRAIN)
    done = run(stages, "python", *command, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert same_bits(trained(stages), trained(by_two))


def test_two_processes_generate_and_judge_the_clips_that_one_does(fetched, tmp_path):
    folders = [copy_for_stages(fetched, tmp_path / str(count)) for count in (1, 2)]
    for count, folder in enumerate(folders, start=1):
        set_params(folder, prompts__emotions=["happy", "angry", "sad"], evaluation__clips_per_emotion=2, duration=3)
        succeed(folder, "baseline", count=count)
        succeed(folder, "score", count=count)
        succeed(folder, "features", "baseline", count=count)
    one, two = (sorted((folder / "clips" / "baseline").glob("*.wav")) for folder in folders)
    assert [path.name for path in one] == [path.name for path in two]
    for a, b in zip(one, two, strict=True):
        waveform = audio.read(a)[0]
        assert waveform.abs().max() > 0.01
        torch.testing.assert_close(audio.read(b)[0], waveform, rtol=0, atol=1.5 / 2**15)  # one step of 16 bits
    one, two = (pd.read_csv(folder / "metrics" / "clips" / "baseline.csv") for folder in folders)
    assert len(one) == 6
    pd.testing.assert_frame_equal(one, two, rtol=0, atol=1e-3)  # of clips that differ in their last bits
    one, two = (pd.read_csv(folder / "metrics" / "features" / "baseline.csv") for folder in folders)
    assert len(one) == 6
    assert one["embedding_distance"].gt(0).all()
    counts = ["onsets", "tempo"]  # which one bit can change
    pd.testing.assert_frame_equal(one.drop(columns=counts), two.drop(columns=counts), rtol=0.01, atol=0.01)
    assert leftovers(folders[1]) == []


def test_a_process_that_is_killed_ends_the_run_and_the_next_one_continues(by_two, stages):
    set_params(stages, **SPLIT, compute__processes=2)
    checkpoint = stages / ".checkpoints" / "train-emopia.pt"
    with (stages / ".said").open("w+") as file:
        whole = subprocess.Popen([sys.executable, *TRAIN], cwd=stages, env=os.environ | ONE_THREAD, stderr=file)
        deadline = time.monotonic() + 120
        while not checkpoint.is_file() and whole.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        workers = {child.environ().get("RANK"): child for child in psutil.Process(whole.pid).children()}
        workers["1"].kill()
        assert whole.wait(60) == 1
        file.seek(0)
        lines = messages(file.read())
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: process 2 of 2 was killed by SIGKILL")
    assert checkpoint.is_file()
    assert not psutil.pid_exists(workers["0"].pid)

    succeed(stages, "train", "emopia", count=2)
    assert same_bits(trained(stages), trained(by_two))
    assert leftovers(stages) == []


WRONG = """
import os, time
from music_ddpo.core.errors import UserError
from music_ddpo.machine.stage import parallel_stage

@parallel_stage
def wrong(params):
    if os.environ["RANK"] == "1":
        raise UserError("what is wrong")
    time.sleep(60)

wrong()
"""


def test_an_error_of_one_process_is_the_only_message(tmp_path):
    (tmp_path / "wrong.py").write_text(WRONG)
    set_params(tmp_path, compute__processes=2)
    done = run(tmp_path, "python", "wrong.py")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["Error: what is wrong"]


def test_a_process_that_has_lost_another_says_so(stages):
    set_params(stages, **SPLIT)
    lost, left = run_stage(stages, "train", "emopia", processes=2, first=leave_early)
    assert (lost.code, left.code) == (1, 7)
    assert "Traceback" not in lost.stderr
    assert re.match("Error: process 1 of 2 lost the connection", messages(lost.stderr)[-1])


def leave_early() -> None:
    """Process 1 ends where it would add up the gradients."""
    if os.environ["RANK"] == "1":
        processes.add_gradients = lambda parameters: os._exit(7)


WAITS = """
import os, socket, time
from datetime import timedelta
import psutil, torch
from music_ddpo.core.files import write_json
from music_ddpo.machine import processes
from music_ddpo.machine.stage import parallel_stage

processes.SLOW = timedelta(seconds=float(os.environ["LIMIT"]))

@parallel_stage
def waits(params):
    connections = [c for c in psutil.Process().net_connections("tcp") if c.status == "ESTABLISHED"]
    probed = []
    for connection in connections:
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT)
        first, next, last = (socket.socket(fileno=os.dup(connection.fd)).getsockopt(6, option) for option in options)
        probed.append([first, next, last // 1000])
    write_json(f"{processes.rank()}.json", probed)
    time.sleep(3 * processes.rank())
    processes.gather([None])

waits()
"""


@pytest.mark.parametrize(("limit", "code"), [("60", 0), ("1", 1)])
def test_a_slow_process_is_waited_for_as_long_as_its_machine_answers(tmp_path, limit, code):
    (tmp_path / "waits.py").write_text(WAITS)
    (tmp_path / "metrics" / "cost").mkdir(parents=True)
    set_params(tmp_path, compute__processes=2)
    done = run(tmp_path, "python", "waits.py", env={"LIMIT": limit})
    assert done.returncode == code, done.stderr
    assert code == ("process 1 of 2 lost the connection" in done.stderr)
    for rank in (0, 1):
        probed = json.loads((tmp_path / f"{rank}.json").read_text())
        assert probed
        assert all(seconds == [20, 10, 60] for seconds in probed)


@pytest.mark.parametrize("device", ["mps", "cuda:0"])
def test_processes_that_would_share_one_device_are_refused(device):
    with pytest.raises(UserError, match=rf"^compute\.processes: 2 .*{device}"):
        launch.launch(2, device)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"^compute\.processes: 3 .*2 CUDA device"):
        launch.launch(3, "auto")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_every_row_belongs_to_one_process(monkeypatch, size):
    monkeypatch.setattr(processes, "size", lambda: size)
    for count in (0, 1, 2, 6, 7, 64, 100):
        parts = []
        for rank in range(size):
            monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
            parts.append(processes.own(count))
        assert [row for part in parts for row in part] == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
