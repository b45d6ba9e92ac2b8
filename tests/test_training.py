"""Training on the embedded models: deterministic, resumable, indifferent to how it is executed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import yaml
from music_ddpo.generator import Generator
from music_ddpo.params import parse
from music_ddpo.prompts import make_prompts
from safetensors.torch import load_file

from conftest import MINI, params_with, run
from music_ddpo import adapter, ddpo
from music_ddpo.rewards.base import load_reward
from test_generator import CHOSEN


def train(checkpoint, chosen=CHOSEN, **changes):
    """A tiny training with the EMOPIA reward; the adapter's parameters and the reward curve."""
    params = parse(params_with(**changes))
    generator = Generator.load(MINI / "pipeline", torch.device("cpu"), chosen.dtype)
    prompts = make_prompts(params.prompts.template, params.prompts.emotions, params.prompts.instruments)
    reward = load_reward("emopia", MINI, torch.device("cpu"))
    epochs = ddpo.train(generator, reward, prompts, params, 0, chosen, checkpoint)
    return [p.detach().clone() for p in adapter.parameters(generator)], epochs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ratio_is_exactly_one_at_every_rounds_first_update(tmp_path, dtype):
    _, epochs = train(tmp_path / "checkpoint", replace(CHOSEN, dtype=dtype), ddpo__updates_per_epoch=1)
    assert [e.ratio_error for e in epochs] == [0.0, 0.0]
    assert [e.clip_fraction for e in epochs] == [0.0, 0.0]
    assert all(e.gradient_norm > 0 for e in epochs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_ratio_is_exactly_one_while_the_weights_stay(tmp_path, dtype):
    still = {"ddpo__learning_rate": 1e-300, "ddpo__updates_per_epoch": 4, "ddpo__clip_range": 1e-12}  # 0 in float32
    weights, epochs = train(tmp_path / "checkpoint", replace(CHOSEN, dtype=dtype, update_batch=5), **still)
    assert not any(b.any() for b in weights[1::2])
    assert [(e.ratio_error, e.clip_fraction, e.kl) for e in epochs] == [(0.0, 0.0, 0.0)] * 2
    assert all(e.gradient_norm > 0 for e in epochs)


def test_update_batches_of_one_and_eight_pairs_give_the_same_adapter(tmp_path):
    # The learning rate is the size of AdamW's first step, so it is what the tolerances below are measured against.
    one_update = {"ddpo__epochs": 1, "ddpo__updates_per_epoch": 1, "ddpo__learning_rate": 0.003}
    one, eight = (train(tmp_path / f"{size}", replace(CHOSEN, update_batch=size), **one_update)[0] for size in (1, 8))
    change = max(p.abs().max() for p in one[1::2])  # the B matrices, which start at 0
    assert change > 1e-4
    for a, b in zip(one, eight, strict=True):
        # AdamW's first step divides a gradient by its own size, so only the sign of tiny ones can differ.
        assert (a - b).abs().median() < 1e-6
        assert ((a - b).abs() > 1e-4).float().mean() < 0.01


def test_two_trainings_of_the_same_params_give_the_same_adapter_bit_for_bit(tmp_path):
    (first, _), (second, _) = (train(tmp_path / name) for name in ("first", "second"))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_changed_params_do_not_go_on_from_a_stale_checkpoint(tmp_path):
    train(tmp_path / "checkpoint")
    fresh, _ = train(tmp_path / "other", ddpo__learning_rate=0.001)
    after_stale, epochs = train(tmp_path / "checkpoint", ddpo__learning_rate=0.001)
    assert len(epochs) == 2
    assert all(torch.equal(a, b) for a, b in zip(fresh, after_stale, strict=True))


def test_a_damaged_checkpoint_is_reported_and_training_starts_afresh(tmp_path):
    fresh, _ = train(tmp_path / "checkpoint")
    damaged = tmp_path / "checkpoint"
    damaged.write_bytes(damaged.read_bytes()[:5000])
    with pytest.warns(UserWarning, match="cannot be read"):
        again, _ = train(damaged)
    assert all(torch.equal(a, b) for a, b in zip(fresh, again, strict=True))


def test_training_that_was_killed_ends_with_the_bit_identical_adapter(project):
    (project / "params.yaml").write_text(yaml.safe_dump(params_with(ddpo__epochs=3)))
    saved = project / "models" / "adapters" / "emopia" / "adapter_model.safetensors"
    checkpoint = project / ".checkpoints" / "train-emopia.pt"

    whole = run(project, "python", "stages/train.py", "emopia")
    assert whole.returncode == 0, whole.stderr
    expected = load_file(saved)
    saved.unlink()

    command = [sys.executable, "stages/train.py", "emopia"]
    killed = subprocess.Popen(command, cwd=project, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not checkpoint.is_file() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert checkpoint.is_file()
    assert not saved.exists()

    resumed = run(project, "python", "stages/train.py", "emopia")
    assert resumed.returncode == 0, resumed.stderr
    adapter_weights = load_file(saved)
    assert all(torch.equal(adapter_weights[key], expected[key]) for key in expected)
    assert not checkpoint.exists()
