"""What a user gets wrong ends in one clear line, a non-zero exit, and nothing half-written."""

from __future__ import annotations

import sys

import pytest
import torch

from helpers.project import PROJECT, copy_of_project, run, set_params, succeed
from helpers.ranks import run_stage


def fails(folder, *command: str) -> str:
    """Runs a stage that must fail; the one line that it prints."""
    (end,) = run_stage(folder, *command)
    assert end.code == 1, end.stderr
    errors = [line for line in end.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, end.stderr
    assert "Traceback" not in end.stderr
    assert not list(folder.rglob("*.partial"))
    return errors[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"duraton": 5}, ["duraton", "duration"]),
        ({"duration": -1}, ["duration", "-1"]),
        ({"steps": 0}, ["steps", "0"]),
        ({"steps": 2000}, ["steps", "2000", "1000"]),
        ({"prompts__emotions": ["happy", "hangry"]}, ["prompts.emotions", "hangry", "angry"]),
        ({"prompts__emotions": []}, ["prompts.emotions"]),
        ({"rewards": ["clapp"]}, ["rewards", "clapp", "clap"]),
        ({"model": "maxi"}, ["model", "maxi", "mini"]),
    ],
)
def test_a_wrong_param_stops_a_stage_with_the_keys_name(tmp_path, change, words):
    set_params(tmp_path, **change)
    (tmp_path / "stages").symlink_to(PROJECT / "stages")
    line = fails(tmp_path, "seed")
    assert all(word in line for word in words), line
    assert not (tmp_path / "metrics").exists()


def test_dvc_removes_nothing_for_a_wrong_param(tmp_path):
    """DVC removes the outputs of a stage before it runs: the first stage finds the error, and has none to remove."""
    project = copy_of_project(tmp_path)
    set_params(project, ddpo__clip_range=-1)
    done = run(project, "dvc", "repro")
    assert done.returncode != 0
    assert (
        "Error: params.yaml: ddpo.clip_range: -1 must be a number (greater than 0, at most 1e+09), or 'auto'."
        in done.stderr
    )
    assert done.stdout.count("Running stage") == 1
    assert succeed(project, "git", "status", "--porcelain").split() == ["M", "params.yaml"]


def test_a_new_param_makes_no_stage_run_that_does_not_depend_on_it(tmp_path):
    project = copy_of_project(tmp_path)
    for rounds in (2, 3):
        set_params(project, ddpo__rounds=rounds, prompts__instruments=["zither"])
        done = run(project, "dvc", "repro", "seed")
        assert done.returncode == 0, done.stderr
        assert ("Running stage 'seed'" in done.stdout) == (rounds == 2)
        assert "Warning: prompts.instruments: mini was never trained on 'zither'" in done.stderr
        known = "acoustic guitar, cello, flute, guitar, organ, piano, saxophone, trumpet, ukulele, violin"
        assert f"mini knows {known}." in done.stderr


@pytest.mark.parametrize("stage", ["baseline", "score", "features", "table", "train", "generate", "evaluate", "card"])
def test_a_wrong_param_is_reported_before_torch_is_imported(tmp_path, stage):
    set_params(tmp_path, steps=0)
    argument = ["emopia"] if stage in ("features", "train", "generate", "evaluate", "card") else []
    done = run(tmp_path, sys.executable, "-X", "importtime", str(PROJECT / "stages" / f"{stage}.py"), *argument)
    assert done.returncode == 1
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "music_ddpo.core.params" in imported
    assert "torch" not in imported
    assert "Error: params.yaml: steps: 0" in done.stderr


@pytest.mark.parametrize(("stage", "reward"), [("train", "bogus"), ("train", "held_out"), ("card", "clop")])
def test_a_stage_takes_only_the_rewards_of_params(stages, stage, reward):
    line = fails(stages, stage, reward)
    assert f"'{reward}' is not among `rewards` (clap, emopia)" in line


def test_a_wrong_model_is_reported_before_anything_is_fetched(tmp_path):
    """Not as an error about the first thing that would be downloaded."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "stages").symlink_to(PROJECT / "stages")
    set_params(tmp_path, model=str(tmp_path / "empty"), judges=["emopia", "clap"])
    line = fails(tmp_path, "fetch")
    assert line.startswith("Error: model: ")
    assert "it has no model_index.json" in line
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("pipeline/unet/diffusion_pytorch_model.safetensors", ["baseline"]),
        ("pipeline/vae/config.json", ["baseline"]),
        ("rewards/emopia/model.safetensors", ["train", "emopia"]),
        ("rewards/clap/model.safetensors", ["train", "clap"]),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_stage_that_meets_damaged_weights_says_so(stages, file, stage, damage):
    path = stages / "models" / file
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    line = fails(stages, *stage)
    assert "fetch" in line
    assert not (stages / "clips").exists()


def test_a_clip_too_short_for_a_reward_is_refused_before_anything_is_generated(stages):
    set_params(stages, duration=2)
    line = fails(stages, "baseline")
    assert "duration" in line
    assert "emopia" in line
    assert "3 s" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_asked_for_and_absent_is_a_clear_error(stages):
    set_params(stages, compute__device="cuda")
    assert "compute.device" in fails(stages, "baseline")


def test_a_file_that_cannot_be_written_whole_is_not_written(stages):
    set_params(stages, duration=3, evaluation__clips_per_emotion=2)
    command = f"ulimit -f 20; {sys.executable} stages/baseline.py"
    done = run(stages, "bash", "-c", command)
    assert done.returncode == 1
    line = next(line for line in done.stderr.splitlines() if line.startswith("Error: "))
    assert "clips/baseline" in line
    assert "could not be written" in line
    assert not (stages / "clips" / "baseline").exists()
    assert not list(stages.rglob("*.partial"))


def test_an_output_place_that_is_taken_is_a_clear_error(stages):
    (stages / "clips").write_text("in the way")
    line = fails(stages, "baseline")
    assert "clips/baseline" in line
