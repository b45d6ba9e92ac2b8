"""The whole study, as a user runs it, in a copy of the project with params that take seconds."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from helpers.project import ONE_THREAD, PROJECT, copy_of_project, python_in, run, set_params, succeed
from music_ddpo.core import audio

STUDY = {"duration": 3, "rewards": ["emopia"]}  # one adapter: each takes four stages


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """A copy of the project after `dvc repro`."""
    folder = copy_of_project(tmp_path_factory.mktemp("study") / "project")
    set_params(folder, **STUDY)
    assert "Table 1" in succeed(folder, "dvc", "repro")
    succeed(folder, "git", "add", "-A")
    succeed(folder, "git", "commit", "-qm", "study")
    return folder


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def stale(study: Path) -> set[str]:
    """The stages that `dvc repro` would run, by what `dvc status` says now; `check` follows any change of params."""
    return set(json.loads(succeed(study, "dvc", "status", "--json"))) - {"check"}


def test_the_study_leaves_tables_metrics_plots_and_ordinary_files(study):
    accuracy = read(study / "metrics" / "accuracy.json")
    assert set(accuracy) == {f"judged_by_{judge}" for judge in ("clap", "emopia", "held_out", "preference", "listener")}
    for judge, headline in (("clap", "similarity"), ("emopia", "accuracy")):
        for model in ("original", "trained_with_emopia"):
            entry = accuracy[f"judged_by_{judge}"][model]
            assert entry[f"{headline}_low"] <= entry[headline] <= entry[f"{headline}_high"]
            assert entry["clips"] == 8
            assert entry["tender"]["clips"] == 2
    training = read(study / "metrics" / "train" / "emopia.json")
    assert training["seed"] == 777
    assert training["ratio_error_at_first_update"] == 0
    assert read(study / "metrics" / "cost" / "train-emopia.json")["peak_memory_gb"] > 0
    card = ModelCard.load(study / "models" / "adapters" / "emopia" / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.license == "mit"
    assert card.data.base_model is None  # the embedded models are not on the hub
    assert "| tender |" in card.text
    clips = sorted((study / "clips" / "emopia").glob("*.wav"))
    assert len(clips) == 8
    waveform, sample_rate = audio.read(clips[0])
    assert (len(waveform), sample_rate) == (3 * 16000, 16000)
    table = (study / "metrics" / "table.md").read_text()
    assert all(
        word in table
        for word in ("Table 1", "Table 2", "Transfer", "tender", "gap", "What changed in the music", "Diversity")
    )
    for name in ("accuracy", "features"):
        assert "<svg" in (study / "plots" / f"{name}.svg").read_text()
    music = read(study / "metrics" / "features.json")
    assert music["loudness"]["trained_with_emopia"]["tender"]["clips"] == 2
    assert music["embedding_distance"]["original"]["tender"]["value"] > 0


def test_dvcs_own_commands_show_it_on_one_screen(study):
    shown = succeed(study, "dvc", "metrics", "show").splitlines()
    assert len(shown) == 2  # a line for each adapter
    assert max(map(len, shown)) <= 120
    assert {"before", "after", "change_ci", "accuracy", "tender", "held_out", "seconds"} < set(shown[0].split())
    # Against the committed run, which has two adapters.
    difference = succeed(study, "dvc", "metrics", "diff", "HEAD~1").splitlines()
    assert len(difference) <= 25
    assert max(map(len, difference)) <= 120
    experiments = succeed(study, "make", "-o", ".venv/ready", "experiments").splitlines()
    header = next(line for line in experiments if "Experiment" in line)
    assert len(header.split()) <= 15
    for command in ("exp show --no-pager", "plots show", "dag"):
        succeed(study, "dvc", *command.split())


def test_nothing_is_stale_and_nothing_speaks_of_minis_making(study):
    assert stale(study) == set()
    planned = succeed(study, "dvc", "repro", "--dry")
    assert "Running stage" not in planned
    assert "mini" not in planned


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"ddpo__clip_range": 0.002}, {"train@emopia", "card@emopia"}),
        ({"judges": ["emopia", "clap", "held_out"]}, {"fetch", "score", "evaluate@emopia"}),
        (
            {"auto__guidance_scale": {"mini": 3.0, "otherwise": 3.5}},
            {"baseline", "train@emopia", "generate@emopia", "card@emopia"},
        ),
        ({"compute__batch": 4}, set()),
    ],
)
def test_a_changed_param_makes_stale_what_depends_on_it_and_nothing_else(study, change, expected):
    set_params(study, **STUDY | change)
    try:
        assert stale(study) == expected
    finally:
        set_params(study, **STUDY)


def test_a_new_reward_trains_and_generates_nothing_else_and_a_former_one_is_put_away(study):
    """The example of docs/adding-a-reward.md, from the file to the table."""
    (code,) = python_in_all((PROJECT / "docs" / "adding-a-reward.md").read_text())
    (study / "src" / "music_ddpo" / "rewards" / "bright.py").write_text(code)
    try:
        assert stale(study) == {"fetch"}  # it writes the checksums of each reward's code
        judges = ["clap", "emopia", "held_out", "bright"]
        new = {f"{stage}@bright" for stage in ("train", "generate", "evaluate", "features-trained", "card")}
        set_params(study, **STUDY | {"judges": judges, "rewards": ["emopia", "bright"]})
        assert stale(study) == {"fetch", "score", "evaluate@emopia", "table", "report", *new}
        set_params(study, **STUDY | {"judges": judges, "rewards": ["bright"]})
        output = succeed(study, "dvc", "repro")
        ran = {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}
        assert ran == {"check", "fetch", "score", "table", "report", *new}
        assert "emopia is no longer in `rewards`" in output
        table = (study / "metrics" / "table.md").read_text()
        assert "| bright | bright centroid |" in table
        assert "trained with emopia" not in table
        assert not (study / "clips" / "emopia").exists()
        assert (study / "old/emopia-1/models/adapters/emopia/adapter_model.safetensors").is_file()
        assert stale(study) == set()
    finally:
        (study / "src" / "music_ddpo" / "rewards" / "bright.py").unlink()
        succeed(study, "git", "checkout", "--", ".")
        succeed(study, "dvc", "checkout")


def python_in_all(markdown: str) -> list[str]:
    return [block.split("```")[0] for block in markdown.split("```python\n")[1:]]


def test_queued_experiments_run_their_own_code_share_the_weights_and_draw_their_own_seeds(study):
    """Two at once, as far as `score`, with random seeds and another duration; the code breaks before they run."""
    names = ("drawn-1", "drawn-2")
    for name in names:
        knobs = ("-S", "seed=random", "-S", "duration=4")
        succeed(study, "dvc", "exp", "run", "--queue", "-n", name, *knobs, "score")
    changed = study / "src" / "music_ddpo" / "measuring" / "judging.py"
    original = changed.read_text()
    changed.write_text("raise RuntimeError('changed after queueing')\n")
    try:
        # Not with `run`, which would wait for the workers, because they inherit its pipes.
        silence = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        environment = os.environ | ONE_THREAD
        subprocess.run(["dvc", "queue", "start", "-j", "2"], cwd=study, env=environment, check=True, **silence)
        shared, copied, ended = set(), set(), {}
        deadline = time.monotonic() + 1500
        while set(ended) != set(names) and time.monotonic() < deadline:
            for path in (study / ".dvc" / "tmp" / "exps").glob("*/models/pipeline/unet/*.safetensors"):
                with suppress(FileNotFoundError):  # an experiment that has ended removes its folder
                    linked = path.is_symlink() or path.stat().st_nlink > 1
                    (shared if linked else copied).add(path.parts[-5])
            # Asked of git, because the files under .git/refs go when it packs them.
            named = succeed(study, "git", "for-each-ref", "--format=%(refname:lstrip=-1) %(objectname)", "refs/exps")
            ended = dict(line.split() for line in named.splitlines() if line.startswith("drawn-"))
            time.sleep(0.1)
        assert set(ended) == set(names), run(study, "dvc", "queue", "status").stdout
    finally:
        changed.write_text(original)
    assert not copied
    assert shared

    def shown(path: str) -> list[str]:
        return [succeed(study, "git", "show", f"{ended[name]}:{path}") for name in names]

    assert all("duration: 4\n" in params for params in shown("params.yaml"))
    assert len({json.loads(seed)["seed"] for seed in shown("metrics/seed.json")} - {777}) == 2
    first, second = shown("metrics/clips/baseline.csv")
    assert first != second


def test_a_random_seed_is_drawn_each_time_and_a_second_repro_does_nothing(study):
    """Back and forth without `-f`: DVC's run cache would give the second `random` the seed of the first."""
    try:
        drawn = []
        for seed in ("random", 1, "random"):
            set_params(study, **STUDY, seed=seed)
            succeed(study, "dvc", "repro", "-s", "seed")
            drawn.append(read(study / "metrics" / "seed.json")["seed"])
            assert "Running stage" not in succeed(study, "dvc", "repro", "-s", "seed")
        assert drawn[1] == 1
        assert len(set(drawn)) == 3
    finally:
        succeed(study, "git", "checkout", "--", ".")


def test_the_lines_of_stock_diffusers_and_peft_in_the_docs_play_the_adapter(study):
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
    succeed(study, "python", "-c", lines + check)
