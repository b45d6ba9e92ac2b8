"""Many processes do what one does, up to the order of summation, and end cleanly whatever ends one of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from music_ddpo.errors import UserError
from ranks import run_stage, succeed
from safetensors.torch import load_file

from conftest import ONE_THREAD, SPLIT, bare_copy, run, set_params
from music_ddpo import audio, parallel

RATE = SPLIT["ddpo__learning_rate"]  # the size of AdamW's first steps
TRAIN = ("stages/train.py", "emopia")


def trained(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "models" / "adapters" / "emopia" / "adapter_model.safetensors")


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def differences(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> torch.Tensor:
    assert a.keys() == b.keys()
    return torch.cat([(a[key] - b[key]).abs().flatten() for key in a])


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def clips_of(folder: Path) -> dict[str, torch.Tensor]:
    return {path.name: audio.read(path)[0] for path in sorted(folder.glob("*.wav"))}


def leftovers(folder: Path) -> list[Path]:
    return [*folder.rglob("*.partial"), *(folder / ".checkpoints").glob("*")]


def counts(stderr: str, title: str) -> list[tuple[int, int]]:
    """What the bars of a title counted to, of how many."""
    return [(int(n), int(of)) for n, of in re.findall(rf"{title}: .*?\| (\d+)/(\d+) \[", stderr)]


def shows_one_bar(stderr: str, title: str) -> bool:
    shown = counts(stderr, title)
    done, ends = [n for n, _ in shown], {of for _, of in shown}
    return done == sorted(done) and done.count(0) == 1 and ends == {done[-1]}


def said(stderr: str) -> list[str]:
    """All lines but the progress bars."""
    return [line for line in re.split(r"[\r\n]+", stderr) if line.strip() and "it/s" not in line and "%|" not in line]


def test_two_processes_train_the_adapter_that_one_does(by_two, stages):
    set_params(stages, **SPLIT)
    succeed(stages, "train", "emopia")

    assert max(b.abs().max() for key, b in trained(stages).items() if "lora_B" in key) > RATE
    apart = differences(trained(stages), trained(by_two))
    assert apart.median() < 1e-4 * RATE
    assert apart.max() < 0.1 * RATE  # one sign that differs in AdamW's first step would be 2 * RATE
    one, two = (pd.read_csv(folder / "plots" / "train" / "emopia.csv") for folder in (stages, by_two))
    pd.testing.assert_frame_equal(one, two, rtol=0, atol=1e-5)  # rewards, of which 6 places are written
    assert len(one) == 2 * 5
    one, two = (read(folder / "metrics" / "train" / "emopia.json") for folder in (stages, by_two))
    assert one.keys() == two.keys()
    assert one["clip_fraction"] > 0
    assert one["approximate_kl"] > 0
    assert two["ratio_error_at_first_update"] == 0
    for key, value in one.items():
        # A pair counts 1/96 of the clip fraction, and may lie on the edge. The rest has 4 digits or 6 places.
        assert two[key] == pytest.approx(value, rel=2e-3, abs=1.1 / 96 if key == "clip_fraction" else 2e-6), key


def test_two_processes_write_once_and_show_one_bar(by_two):
    stderr = (by_two / "said").read_text()
    assert shows_one_bar(stderr, "train emopia")
    assert said(stderr) == []
    assert leftovers(by_two) == []
    cost = read(by_two / "metrics" / "cost" / "train-emopia.json")
    assert cost["seconds"] > 0
    assert 0.1 < cost["peak_memory_gb"] < 8


@pytest.mark.parametrize("clips", [8, 1])  # with one clip, one of the two processes has nothing to do
def test_the_first_update_of_two_processes_is_that_of_one(stages, clips):
    once = {"ddpo__epochs": 1, "ddpo__updates_per_epoch": 1, "ddpo__trajectories_per_epoch": clips}
    adapters = []
    for processes in (1, 2):
        set_params(stages, **once, ddpo__learning_rate=0.003, compute__processes=processes)
        succeed(stages, "train", "emopia", processes=processes)
        adapters.append(trained(stages))
        metrics = read(stages / "metrics" / "train" / "emopia.json")
        assert metrics["ratio_error_at_first_update"] == 0
        assert metrics["clip_fraction"] == 0
        assert metrics["approximate_kl"] == 0
    apart = differences(*adapters)
    assert apart.median() < 1e-8
    # AdamW's first step divides a gradient by its own size, so only the sign of tiny ones can differ.
    assert (apart > 1e-5).float().mean() < 1e-3


def test_two_processes_make_and_score_the_clips_that_one_does(by_two, stages):
    folders = {1: stages, 2: bare_copy(by_two, stages.parent / "two")}
    for processes, folder in folders.items():
        shutil.copytree(by_two / "models" / "adapters", folder / "models" / "adapters")
        three = {"prompts__emotions": ["happy", "angry", "sad"], "evaluation__clips_per_emotion": 1}
        set_params(folder, **three, compute__processes=processes)
        succeed(folder, "baseline", processes=processes)
    succeed(stages, "score")
    made = folders[2] / "clips" / "baseline"
    made.rename(made.with_name("made"))
    shutil.copytree(stages / "clips" / "baseline", made)  # the very same clips, to be scored
    succeed(folders[2], "score", processes=2)
    shutil.rmtree(made)
    made.with_name("made").rename(made)
    succeed(stages, "evaluate", "emopia")
    done = run(folders[2], "python", "stages/evaluate.py", "emopia", env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert shows_one_bar(done.stderr, "clips after training with emopia")
    assert shows_one_bar(done.stderr, "clap listens to emopia")
    assert said(done.stderr) == []

    for name in ("baseline", "emopia"):
        one, two = (clips_of(folder / "clips" / name) for folder in folders.values())
        assert list(one) == list(two)
        assert len(one) == 3
        for clip in one:
            torch.testing.assert_close(two[clip], one[clip], rtol=0, atol=1.5 / 2**15)  # a step of 16 bits
            assert one[clip].abs().max() > 0.01
        one, two = (pd.read_csv(folder / "metrics" / "clips" / f"{name}.csv") for folder in folders.values())
        apart = 1e-5 if name == "baseline" else 1e-3  # of a clip that differs in its last bits CLAP tells 1e-4 more
        pd.testing.assert_frame_equal(one, two, rtol=0, atol=apart)
    one, two = (read(folder / "metrics" / "baseline.json") for folder in folders.values())
    assert two == pytest.approx(one, rel=0, abs=1e-4)  # 4 places are written
    one, two = (read(folder / "metrics" / "evaluate" / "emopia.json") for folder in folders.values())
    assert two == pytest.approx(one, rel=0, abs=1e-3)
    assert leftovers(folders[2]) == []
    for name in ("baseline", "score", "evaluate-emopia"):
        assert read(folders[2] / "metrics" / "cost" / f"{name}.json")["seconds"] > 0


def test_torchrun_by_hand_trains_the_same_adapter_bit_for_bit(by_two, stages):
    set_params(stages, **SPLIT)
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *TRAIN)
    done = run(stages, "python", *command, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert same_bits(trained(stages), trained(by_two))
    assert leftovers(stages) == []


def test_a_process_that_is_killed_ends_the_run_and_the_next_one_goes_on(by_two, stages):
    set_params(stages, **SPLIT, compute__processes=2)
    checkpoint = stages / ".checkpoints" / "train-emopia.pt"
    command = [sys.executable, *TRAIN]
    with (stages / ".said").open("w+") as file:
        whole = subprocess.Popen(command, cwd=stages, env=os.environ | ONE_THREAD, stderr=file)
        deadline = time.monotonic() + 120
        while not checkpoint.is_file() and whole.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        workers = {child.environ().get("RANK"): child for child in psutil.Process(whole.pid).children()}
        workers["1"].kill()
        assert whole.wait(60) == 1
        file.seek(0)
        lines = said(file.read())
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: process 2 of 2 was killed by SIGKILL")
    assert checkpoint.is_file()
    assert not (stages / "models" / "adapters").exists()
    assert not psutil.pid_exists(workers["0"].pid)

    succeed(stages, "train", "emopia", processes=2)
    assert same_bits(trained(stages), trained(by_two))
    for path in ("metrics/train/emopia.json", "plots/train/emopia.csv"):
        assert (stages / path).read_text() == (by_two / path).read_text()
    assert leftovers(stages) == []


def test_what_a_user_gets_wrong_is_said_once(stages):
    (stages / "models" / "rewards" / "emopia").rename(stages / "away")
    set_params(stages, compute__processes=2)
    done = run(stages, "python", *TRAIN)
    assert done.returncode == 1
    assert len(said(done.stderr)) == 1, done.stderr
    assert re.match(r"Error: models/rewards/emopia.*dvc repro", done.stderr)


WRONG = """
import os, time
from music_ddpo.errors import UserError
from music_ddpo.stage import parallel_stage

@parallel_stage
def wrong(params):
    if os.environ["RANK"] == "1":
        raise UserError("what is wrong")
    time.sleep(60)

wrong()
"""


def test_what_one_process_alone_gets_wrong_is_all_that_is_said(tmp_path):
    (tmp_path / "wrong.py").write_text(WRONG)
    set_params(tmp_path, compute__processes=2)
    done = run(tmp_path, "python", "wrong.py")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["Error: what is wrong"]


def test_a_process_that_has_lost_another_says_so(stages):
    set_params(stages, **SPLIT, compute__processes=2)
    lost, left = run_stage(stages, "train", "emopia", processes=2, first=leave_early)
    assert (lost.code, left.code) == (1, 7)
    assert "Traceback" not in lost.stderr
    assert [line for line in said(lost.stderr) if line.startswith("Error: process 1 of 2 lost the connection")]


def leave_early() -> None:
    """Process 1 vanishes where it would add up the gradients."""
    if os.environ["RANK"] == "1":
        parallel.add_gradients = lambda parameters: os._exit(7)


@pytest.mark.parametrize("device", ["mps", "cuda:0"])
def test_processes_that_would_share_one_device_are_refused(device):
    with pytest.raises(UserError, match=rf"^compute\.processes: 2 .*{device}"):
        parallel.launch(2, device)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_more_processes_than_gpus_are_refused(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"^compute\.processes: 3 .*2 CUDA device"):
        parallel.launch(3, device)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_every_row_belongs_to_one_process(monkeypatch, size):
    monkeypatch.setattr(parallel, "size", lambda: size)
    for count in (0, 1, 2, 6, 7, 64, 100):
        parts = []
        for rank in range(size):
            monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
            parts.append(parallel.own(count))
        assert [row for part in parts for row in part] == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
