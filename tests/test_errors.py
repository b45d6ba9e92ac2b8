"""What a user gets wrong ends in one clear line, a non-zero exit, and nothing half-written."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import yaml

from conftest import PROJECT, params_with, run


def fails(folder, *command: str) -> str:
    """Runs a stage that must fail; the one line that it says."""
    done = run(folder, "python", *command)
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert not list(folder.rglob("*.partial"))
    return errors[0]


def set_params(folder, **changes) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(params_with(**changes)))


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
    line = fails(tmp_path, str(PROJECT / "stages" / "seed.py"))
    assert all(word in line for word in words), line
    assert not (tmp_path / "metrics").exists()


def test_damaged_weights_are_named_and_nothing_is_fetched(project):
    weights = project / "mini" / "models" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[:-100], content[:-1] + bytes([content[-1] ^ 1]), None):
        for folder in ("pipeline", "rewards"):
            subprocess.run(["rm", "-rf", project / "models" / folder], check=True)
        weights.unlink() if damaged is None else weights.write_bytes(damaged)
        line = fails(project, "stages/fetch.py")
        assert "unet/diffusion_pytorch_model.safetensors" in line
        assert "git checkout" in line
        assert not (project / "models" / "pipeline").exists()


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("pipeline/unet/diffusion_pytorch_model.safetensors", ["stages/baseline.py"]),
        ("pipeline/vae/config.json", ["stages/baseline.py"]),
        ("rewards/emopia/model.safetensors", ["stages/train.py", "emopia"]),
        ("rewards/clap/model.safetensors", ["stages/train.py", "clap"]),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_stage_that_meets_damaged_weights_says_so(project, file, stage, damage):
    path = project / "models" / file
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    line = fails(project, *stage)
    assert "fetch" in line
    assert not (project / "clips").exists()


def test_a_clip_too_short_for_a_reward_is_refused_before_anything_is_generated(project):
    set_params(project, duration=2)
    line = fails(project, "stages/baseline.py")
    assert "duration" in line
    assert "emopia" in line
    assert "3 s" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_asked_for_and_absent_is_a_clear_error(project):
    set_params(project, compute__device="cuda")
    assert "compute.device" in fails(project, "stages/baseline.py")


def test_a_file_that_cannot_be_written_whole_is_not_written(project):
    command = f"ulimit -f 20; {sys.executable} stages/baseline.py"
    done = run(project, "bash", "-c", command)
    assert done.returncode == 1
    line = next(line for line in done.stderr.splitlines() if line.startswith("Error: "))
    assert "clips/baseline" in line
    assert "could not be written" in line
    assert not (project / "clips" / "baseline").exists()
    assert not list(project.rglob("*.partial"))


def test_an_output_place_that_is_taken_is_a_clear_error(project):
    (project / "clips").write_text("in the way")
    line = fails(project, "stages/baseline.py")
    assert "clips/baseline" in line
