"""SIGTERM and SIGUSR1: a training keeps all that was done, and goes on to the bit-identical adapter."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from music_ddpo.generator import AudioLDM2Pipeline, Generator
from music_ddpo.params import parse
from music_ddpo.prompts import make_prompts
from ranks import run_stage, succeed
from tqdm import tqdm

from conftest import MINI, ONE_THREAD, SPLIT, params_with, set_params
from music_ddpo import adapter, audio, clips, ddpo, execution, interruption
from music_ddpo.rewards.base import load_reward, reward_class
from test_generator import CHOSEN
from test_parallel import TRAIN, leftovers, said, same_bits, trained

SIGNALS = [signal.SIGTERM, signal.SIGUSR1]
MANY = {"duration": 3, "ddpo__trajectories_per_epoch": 12, "ddpo__updates_per_epoch": 4, "ddpo__learning_rate": 0.003}
# Batches for one process, of which none divides what it cuts.
BATCHES = {"compute__sample_batch": 5, "compute__update_batch": 5, "compute__decode_batch": 5}


class Stopper(tqdm):
    """A progress bar that gets a signal in a phase of a round: "sample", "listen" or "learn", at its `at`-th tick."""

    phase, at, number = "", 0, signal.SIGTERM
    ticks: ClassVar[Counter[str]] = Counter()

    def update(self, n=1):
        now = "listen" if not n else "learn" if self.ticks["listen"] else "sample"
        self.ticks[now] += 1
        if (now, self.ticks[now]) == (self.phase, self.at):
            signal.raise_signal(self.number)
        return super().update(n)

    def set_postfix_str(self, *arguments):  # the end of a round
        self.ticks.clear()
        return super().set_postfix_str(*arguments)


def stop_at(phase: str, at: int, number: int = signal.SIGTERM, only: str | None = None) -> None:
    """The next training gets a signal; of several processes, the one whose rank is `only`, or all."""
    if only in (None, os.environ.get("RANK")):
        Stopper.phase, Stopper.at, Stopper.number, Stopper.ticks = phase, at, number, Counter()
        ddpo.tqdm = Stopper


@pytest.fixture
def watching(monkeypatch):
    """Signals are watched for, as a stage does it."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setattr(interruption, "_noted", None)
    monkeypatch.setattr(interruption, "_deferred", False)
    monkeypatch.setattr(ddpo, "tqdm", tqdm)
    interruption.watch()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def train(models, checkpoint: Path, **changes):
    """A training in this process, as a fresh one would begin it: the adapter's parameters and the reward curve."""
    interruption._noted = None
    params = parse(params_with(**MANY | BATCHES | changes))
    generator, reward = deepcopy(models)
    prompts = make_prompts(params.prompts.template, params.prompts.emotions, params.prompts.instruments)
    chosen = execution.choose(params.compute)
    epochs = ddpo.train(generator, reward, prompts, params, 0, chosen, checkpoint)
    return [p.detach().clone() for p in adapter.parameters(generator)], epochs


@pytest.fixture(scope="module")
def uninterrupted(models, tmp_path_factory):
    return train(models, tmp_path_factory.mktemp("uninterrupted") / "checkpoint")


def assert_same(result, expected) -> None:
    assert all(torch.equal(a, b) for a, b in zip(result[0], expected[0], strict=True))
    assert result[1] == expected[1]


def state(checkpoint: Path) -> dict:
    return torch.load(checkpoint, weights_only=True)


# What must be kept: whole portions of clips while they are sampled, then all of them and the optimizer steps done.
# In this order each place lies beyond the one before, so one training meets them all.
PLACES = [
    ("sample", 1, 0, 0, 0),
    ("sample", 4, 0, 0, 0),  # the last step of the first portion: it counts when it is whole
    ("sample", 6, 0, 5, 0),
    ("sample", 7, 0, 10, 0),
    ("listen", 1, 0, 12, 0),
    ("listen", 3, 0, 12, 0),
    ("learn", 1, 0, 12, 0),
    ("learn", 10, 0, 12, 0),  # of the first update: 1 + 9 portions remembered, then its own 3
    ("learn", 11 + 3, 0, 12, 1),
    ("learn", 3 + 1, 0, 12, 2),
    ("learn", 3 + 3, 0, 12, 3),
    ("sample", 6, 1, 5, 0),
    ("learn", 11 + 3, 1, 12, 1),  # now AdamW remembers gradients
]


@pytest.mark.parametrize(("number", "places"), [(signal.SIGTERM, PLACES), (signal.SIGUSR1, [PLACES[1], PLACES[8]])])
def test_a_training_stopped_everywhere_in_turn_ends_with_the_same_bits(
    models, uninterrupted, watching, tmp_path, number, places
):
    checkpoint = tmp_path / "checkpoint"
    for phase, at, rounds, sampled, updates in places:
        stop_at(phase, at, number)
        with pytest.raises(interruption.Interrupted) as stopped:
            train(models, checkpoint)
        assert stopped.value.number == number
        assert str(checkpoint) in str(stopped.value)
        assert f"{rounds} of 2 rounds" in str(stopped.value)
        kept = state(checkpoint)
        assert len(kept["progress"]["epochs"]) == rounds
        assert sorted(kept["round"]["clips"]) == list(range(sampled)), (phase, at)
        assert kept["round"]["updates"] == updates, (phase, at)
        assert list(tmp_path.iterdir()) == [checkpoint]
    stop_at("", 0)
    assert_same(train(models, checkpoint), uninterrupted)


def test_a_signal_between_two_rounds_stops_the_next_one(models, uninterrupted, watching, tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint"
    monkeypatch.setattr(ddpo.torch, "save", signalling(torch.save))
    with pytest.raises(interruption.Interrupted, match="holds 1 of 2 rounds"):
        train(models, checkpoint)
    monkeypatch.undo()
    assert state(checkpoint)["round"]["clips"] == {}
    assert_same(train(models, checkpoint), uninterrupted)


def signalling(save):
    """Saves a checkpoint, with signals before, within and after."""

    def signalled(content, path):
        signal.raise_signal(signal.SIGTERM)
        save(content, path)
        signal.raise_signal(signal.SIGUSR1)
        path.touch()
        signal.raise_signal(signal.SIGTERM)

    return signalled


def test_more_signals_do_not_spoil_the_checkpoint(models, uninterrupted, watching, tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint"
    stop_at("learn", 14, signal.SIGUSR1)
    monkeypatch.setattr(ddpo.torch, "save", signalling(torch.save))
    with pytest.raises(interruption.Interrupted) as stopped:
        train(models, checkpoint)
    monkeypatch.undo()
    assert stopped.value.number == signal.SIGUSR1  # the first one
    assert list(tmp_path.iterdir()) == [checkpoint]
    assert state(checkpoint)["round"]["updates"] == 1
    assert_same(train(models, checkpoint), uninterrupted)


def test_a_signal_when_all_is_learnt_lets_the_training_end(models, uninterrupted, watching, tmp_path, monkeypatch):
    monkeypatch.setattr(ddpo.torch, "save", signalling(torch.save))
    _, epochs = train(models, tmp_path / "checkpoint", ddpo__epochs=1)
    assert epochs == uninterrupted[1][:1]
    assert interruption.noted() == signal.SIGTERM


def raises_signal(*arguments, **options):
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("what", ["generator", "reward", "adapter"])
def test_a_signal_while_weights_are_loaded_is_not_taken_for_damage(watching, monkeypatch, tmp_path, what):
    monkeypatch.setattr(AudioLDM2Pipeline, "from_pretrained", raises_signal)
    monkeypatch.setattr(reward_class("emopia"), "load", raises_signal)
    monkeypatch.setattr(adapter.PeftModel, "from_pretrained", raises_signal)
    (tmp_path / "adapter_config.json").touch()
    load = {
        "generator": lambda: Generator.load(MINI / "pipeline", CHOSEN.device),
        "reward": lambda: load_reward("emopia", MINI, CHOSEN.device),
        "adapter": lambda: adapter.load(SimpleNamespace(unet=None), tmp_path),
    }[what]
    with pytest.raises(interruption.Interrupted):
        load()


def test_a_signal_to_either_of_two_processes_stops_both(stages, by_two):
    set_params(stages, **SPLIT, compute__processes=2)
    for phase, at, only in (("sample", 3, "1"), ("learn", 1, "0"), ("learn", 6, "1"), ("learn", 2, None)):
        ends = run_stage(stages, "train", "emopia", processes=2, first=stop_at, given=(phase, at, signal.SIGUSR1, only))
        assert [end.code for end in ends] == [128 + signal.SIGUSR1] * 2, "".join(end.stderr for end in ends)
        lines = said(ends[0].stderr)
        assert len(lines) == 1
        assert re.match(r"train-emopia: stopped by SIGUSR1; \.checkpoints/train-emopia\.pt holds [01] of 2", lines[0])
        assert said(ends[1].stderr) == []
        assert not (stages / "models" / "adapters").exists()
    succeed(stages, "train", "emopia", processes=2)
    assert_same_results(stages, by_two)


def assert_same_results(folder: Path, expected: Path) -> None:
    assert same_bits(trained(folder), trained(expected))
    for path in ("plots/train/emopia.csv", "metrics/train/emopia.json"):
        assert (folder / path).read_text() == (expected / path).read_text()
    assert leftovers(folder) == []


def test_a_scheduler_that_stops_a_training_costs_nothing(stages, by_two, tmp_path):
    set_params(stages, **SPLIT, compute__processes=2)
    checkpoint = stages / ".checkpoints" / "train-emopia.pt"
    with (tmp_path / "said").open("w+") as file:
        command = [sys.executable, *TRAIN]
        options = {"cwd": stages, "env": os.environ | ONE_THREAD, "start_new_session": True}
        job = subprocess.Popen(command, stderr=file, **options)
        deadline = time.monotonic() + 120
        while not checkpoint.is_file() and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(job.pid, signal.SIGTERM)
        assert job.wait(60) == 128 + signal.SIGTERM
        file.seek(0)
        lines = said(file.read())
    assert len(lines) == 1, lines
    assert lines[0].startswith("train-emopia: stopped by SIGTERM; .checkpoints/train-emopia.pt holds 1 of 2 rounds")
    assert not (stages / "models" / "adapters").exists()
    assert len(state(checkpoint)["progress"]["epochs"]) == 1
    assert "round" in state(checkpoint)

    succeed(stages, "train", "emopia", processes=2)
    assert_same_results(stages, by_two)


def stop_baseline(where: str) -> None:
    """The next clips get a signal while they are denoised, or while the second of them is written."""
    if where == "generate":
        clips.tqdm = Stopper
        Stopper.phase, Stopper.at = "sample", 3
    else:
        write = audio.write

        def write_first(path, *content):
            write(path, *content)
            if path.name.startswith("001"):
                signal.raise_signal(signal.SIGTERM)

        audio.write = write_first


@pytest.mark.parametrize(("where", "processes"), [("generate", 1), ("generate", 2), ("write", 1)])
def test_a_signal_to_another_stage_leaves_nothing_half_written(stages, where, processes):
    set_params(stages, compute__processes=processes)
    ends = run_stage(stages, "baseline", processes=processes, first=stop_baseline, given=(where,))
    assert [end.code for end in ends] == [128 + signal.SIGTERM] * processes
    assert said(ends[0].stderr) == ["baseline: stopped by SIGTERM; nothing half-done is left"]
    assert said(ends[-1].stderr) == said(ends[0].stderr)[: 2 - processes]
    assert leftovers(stages) == []
    assert not (stages / "clips" / "baseline").exists()
