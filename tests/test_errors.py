"""What a user gets wrong ends in one clear line, a non-zero exit, and nothing half-written."""

from __future__ import annotations

import sys

import pytest
import torch

from helpers.project import PROJECT, run, set_params
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
