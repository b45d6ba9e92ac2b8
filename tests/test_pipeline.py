"""The whole study, as a user runs it, in a copy of the project with params that take seconds."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import suppress

import pytest
import yaml
from huggingface_hub import ModelCard

from conftest import PROJECT, copy_of_project, params_with, python_in, run
from music_ddpo.core import audio


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A copy of the project after `dvc repro`."""
    folder = copy_of_project(tmp_path_factory.mktemp("study") / "project")
    done = run(folder, "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Table 1" in done.stdout
    run(folder, "git", "add", "-A")
    assert run(folder, "git", "commit", "-qm", "study").returncode == 0
    return folder


def stages_run(output: str) -> set[str]:
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}


def test_the_study_leaves_tables_metrics_plots_and_ordinary_files(study):
    accuracy = json.loads((study / "metrics" / "accuracy.json").read_text())
    assert set(accuracy) == {"judged_by_clap", "judged_by_emopia", "judged_by_held_out"}
    for judge, headline in (("clap", "similarity"), ("emopia", "accuracy")):
        for model in ("original", "trained_with_clap", "trained_with_emopia"):
            entry = accuracy[f"judged_by_{judge}"][model]
            assert entry[f"{headline}_low"] <= entry[headline] <= entry[f"{headline}_high"]
            assert entry["clips"] == 8
            assert entry["tender"]["clips"] == 2
    for reward in ("clap", "emopia"):
        training = json.loads((study / "metrics" / "train" / f"{reward}.json").read_text())
        assert training["seed"] == 777
        assert training["ratio_error_at_first_update"] == 0
        assert json.loads((study / "metrics" / "cost" / f"train-{reward}.json").read_text())["peak_memory_gb"] > 0
        assert (study / "models" / "adapters" / reward / "adapter_config.json").is_file()
        card = ModelCard.load(study / "models" / "adapters" / reward / "README.md")
        assert card.data.library_name == "peft"
        assert card.data.base_model is None  # the embedded models are not on the hub
        assert "| tender |" in card.text
        clips = sorted((study / "clips" / reward).glob("*.wav"))
        assert len(clips) == 8
        waveform, sample_rate = audio.read(clips[0])
        assert (len(waveform), sample_rate) == (5 * 16000, 16000)
    table = (study / "metrics" / "table.md").read_text()
    assert all(word in table for word in ("Table 1", "Table 2", "Transfer", "tender", "gap"))


@pytest.mark.parametrize("command", ["metrics show", "metrics diff", "params diff", "exp show", "plots show", "dag"])
def test_dvcs_own_commands_show_it(study, command):
    done = run(study, "dvc", *command.split())
    assert done.returncode == 0, done.stderr


def test_a_second_repro_does_nothing_within_seconds(study):
    started = time.monotonic()
    done = run(study, "dvc", "repro")
    assert done.returncode == 0, done.stderr
    assert not stages_run(done.stdout)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"evaluation__bootstrap": 300}, {"table"}),
        ({"ddpo__clip_range": 0.001}, {"train@clap", "train@emopia", "card@clap", "card@emopia"}),
        (
            {"evaluation__eta": 0.0},
            {"baseline", "evaluate@clap", "evaluate@emopia", "table", "card@clap", "card@emopia"},
        ),
        ({"rewards": ["emopia"]}, {"table"}),
        ({"compute__update_batch": 4}, set()),
        (
            {"model": "mini/models"},  # the same weights, but `auto` means something else
            {"fetch", "baseline", *(f"{s}@{r}" for s in ("train", "evaluate", "card") for r in ("clap", "emopia"))},
        ),
    ],
)
def test_a_turned_knob_makes_stale_what_depends_on_it_and_nothing_else(study, change, expected):
    (study / "params.yaml").write_text(yaml.safe_dump(params_with(**change), sort_keys=False))
    try:
        done = run(study, "dvc", "status", "--json")
        assert done.returncode == 0, done.stderr
        status = json.loads(done.stdout)
        stale = {stage for stage in status if not stage.startswith("mini/")}
        assert stale == expected
    finally:
        (study / "params.yaml").write_text(yaml.safe_dump(params_with(), sort_keys=False))


def test_an_experiment_with_another_duration_makes_clips_of_that_duration(study):
    done = run(study, "dvc", "exp", "run", "-S", "duration=10", "-S", "rewards=[emopia]")
    assert done.returncode == 0, done.stdout + done.stderr
    try:
        waveform, sample_rate = audio.read(next((study / "clips" / "emopia").glob("*.wav")))
        assert len(waveform) == 10 * sample_rate
        difference = json.loads(run(study, "dvc", "params", "diff", "--json").stdout)
        assert difference["params.yaml"]["duration"] == {"old": 5, "new": 10, "diff": 5}
        assert json.loads(run(study, "dvc", "metrics", "diff", "--json").stdout)
        assert run(study, "dvc", "plots", "diff").returncode == 0
    finally:
        run(study, "git", "checkout", "--", ".")
        run(study, "dvc", "checkout")


def test_four_queued_experiments_share_the_weights_and_give_what_single_runs_give(study):
    one_thread = {"OMP_NUM_THREADS": "1"}  # two at a time would fight for the cores, and the bits depend on it
    knobs = {f"queued-{i}": ("-S", f"lora.alpha={i}", "-S", "rewards=[emopia]") for i in (1, 2, 3, 4)}
    for name, knob in knobs.items():
        queued = run(study, "dvc", "exp", "run", "--queue", "-n", name, *knob)
        assert queued.returncode == 0, queued.stderr
    # Not with `run`, which would wait for the workers: what is captured, they inherit.
    silence = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["dvc", "queue", "start", "-j", "2"], cwd=study, env=os.environ | one_thread, check=True, **silence)

    shared, copied, ended = set(), set(), {}
    deadline = time.monotonic() + 300
    while set(ended) != set(knobs) and time.monotonic() < deadline:
        for path in (study / ".dvc" / "tmp" / "exps").glob("*/models/pipeline/unet/*.safetensors"):
            with suppress(FileNotFoundError):  # an experiment that has ended takes its folder away
                (shared if path.is_symlink() or path.stat().st_nlink > 1 else copied).add(path.parts[-5])
        ended = {p.name: p.read_text().strip() for p in (study / ".git/refs/exps").rglob("queued-?")}
        time.sleep(0.05)
    assert set(ended) == set(knobs), run(study, "dvc", "queue", "status").stdout
    assert not copied
    assert len(shared) == 4

    try:
        single = run(study, "dvc", "exp", "run", *knobs["queued-4"], env=one_thread)
        assert single.returncode == 0, single.stderr
        for path in ("metrics/clips/emopia.csv", "metrics/train/emopia.json", "plots/train/emopia.csv"):
            alone = (study / path).read_text()
            queued = {name: run(study, "git", "show", f"{commit}:{path}").stdout for name, commit in ended.items()}
            assert alone == queued["queued-4"]
            assert alone != queued["queued-1"]
    finally:
        run(study, "git", "checkout", "--", ".")
        run(study, "dvc", "checkout")


def test_a_random_seed_is_drawn_and_recorded(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params_with(seed="random")))
    drawn = []
    for _ in range(2):
        assert run(tmp_path, "python", str(PROJECT / "stages" / "seed.py")).returncode == 0
        drawn.append(json.loads((tmp_path / "metrics" / "seed.json").read_text())["seed"])
    assert all(isinstance(seed, int) and seed >= 0 for seed in drawn)
    assert drawn[0] != drawn[1]


def test_the_readmes_lines_of_stock_diffusers_and_peft_play_the_adapter(study):
    lines = python_in((PROJECT / "README.md").read_text())
    check = """
import numpy, torch
assert audio.shape == (80000,) and numpy.isfinite(audio).all()
def play():
    return pipe("happy piano", audio_length_in_s=5, num_inference_steps=3, generator=torch.manual_seed(0)).audios[0]
heard = play()
with pipe.unet.disable_adapter():
    assert abs(play() - heard).max() > 1e-4
"""
    done = run(study, "python", "-c", lines + check)
    assert done.returncode == 0, done.stderr
