"""Damaged, strange and hostile files: each ends in one line that names the file, and nothing is taken for a success."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file

from helpers.project import CPU, MINI, PROJECT, load_generator, mini_emopia, run, saved_adapter, small
from music_ddpo.core import audio
from music_ddpo.core.checked_tables import Number, Text, read_table
from music_ddpo.core.errors import UserError, in_one_line
from music_ddpo.core.files import checksums, read_json, verify, write_json
from music_ddpo.core.prompts import make_prompts
from music_ddpo.measuring import clips
from music_ddpo.measuring.study import read_scores
from music_ddpo.model import adapter, adapter_files
from music_ddpo.rewards.emopia import Emopia, weights
from music_ddpo.rewards.emopia.reward import read_hparams
from music_ddpo.rewards.finding import load_reward
from music_ddpo.weights import checkpoints, hub
from music_ddpo.weights.manifests import check_pipeline


def spoil(path: Path, content: bytes | str | None) -> Path:
    """Replaces a file by other content, or by a pipe."""
    path.unlink(missing_ok=True)
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(path: Path, read, *arguments, **options) -> str:
    """Calls a reader that must name the file in one line."""
    with pytest.raises(UserError) as caught:
        read(*arguments, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 1000
    return message


NO_TEXT = {
    "a pipe": None, "empty": "", "binary": bytes(range(256)) * 10, "nested": "[" * 100_000, "a word": "x",
}  # fmt: skip


# JSON


@pytest.mark.parametrize(
    "content",
    [*NO_TEXT.values(), '{"a": 1', "[1]", '{"a": NaN}', '{"a": 1e999}', '{"a": "1"}', '{"a": null}', '{"b": 1}'],
    ids=[*NO_TEXT, "cut", "a list", "NaN", "infinite", "text", "nothing", "another key"],
)
def test_damaged_json_is_named(tmp_path, content):
    path = spoil(tmp_path / "a.json", content)
    assert "dvc repro" in refused(path, read_json, path, dict[str, float], ["a"])


def test_json_that_is_missing_or_too_large_is_named(tmp_path):
    path = tmp_path / "a.json"
    assert "not found; run `dvc repro`" in refused(path, read_json, path)
    with path.open("wb") as file:
        file.truncate(100_000_000)
    assert "100 MB" in refused(path, read_json, path)


def test_a_number_that_is_not_finite_is_never_written_as_json(tmp_path):
    with pytest.raises(UserError, match=r"a\.json: not written, because x\.y is not a finite number"):
        write_json(tmp_path / "a.json", {"x": {"y": float("nan"), "z": 1}})
    assert not list(tmp_path.iterdir())


# Tables


COLUMNS = {"name": Text(), "kind": Text(("a", "b")), "right": Number((0, 1)), "value": Number()}
ROWS = "name,kind,right,value,more\nnan,a,1,0.5,x\nNone,b,0,-3,\n"


def test_a_table_is_read_as_it_is():
    with_names = pd.DataFrame({"name": ["nan", "None"], "right": [1.0, 0.0], "value": [0.5, -3.0]})
    path = Path("table.csv")
    path.write_text(ROWS)
    pd.testing.assert_frame_equal(read_table(path, COLUMNS)[["name", "right", "value"]].astype({"name": object}),
                                  with_names.astype({"name": object}))  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        *NO_TEXT.values(),
        ROWS.splitlines()[0],
        ROWS.replace("right", "wrong"),
        ROWS.replace("1,0.5", "7,0.5"),
        ROWS.replace("0.5", "nan"),
        ROWS.replace("0.5", "1e300"),
        ROWS.replace("0.5", "half"),
        ROWS.replace(",a,", ",c,"),
        ROWS.replace("None", ""),
        ROWS.replace(",x", ",x,y,z"),
        ROWS + "a,b",
    ],
    ids=[*NO_TEXT, "no rows", "no column", "7", "NaN", "huge", "words", "another word", "gap", "longer", "cut"],
)
def test_a_damaged_table_is_named(tmp_path, content):
    path = spoil(tmp_path / "a.csv", content)
    refused(path, read_table, path, COLUMNS)


@pytest.fixture
def scores(tmp_path) -> Path:
    """The committed scores, copied."""
    return Path(shutil.copytree(PROJECT / "metrics" / "clips", tmp_path / "metrics" / "clips"))


def change(path: Path, edit) -> None:
    table = pd.read_csv(path, keep_default_na=False)
    edit(table).to_csv(path, index=False)


TABLES = {
    "a row missing": lambda t: t.drop(index=5),
    "a row twice": lambda t: pd.concat([t[:1], t[:-1]]),
    "rows swapped": lambda t: t.iloc[::-1],
    "a judge gone": lambda t: t.drop(columns=[c for c in t if c.startswith("emopia_")]),
    "another headline": lambda t: t.replace("accuracy", "similarity"),
    "another quadrant": lambda t: t.assign(quadrant="Q9"),
    "seven right": lambda t: t.assign(emopia_correct=7),
}


@pytest.mark.parametrize("edit", TABLES.values(), ids=TABLES)
def test_scores_that_do_not_fit_the_originals_are_named(scores, edit):
    original = read_scores(scores / "baseline.csv", 25)
    assert len(read_scores(scores / "emopia.csv", 25, original, scores / "baseline.csv")) == 100
    change(scores / "emopia.csv", edit)
    refused(scores / "emopia.csv", read_scores, scores / "emopia.csv", 25, original, scores / "baseline.csv")


def test_damaged_scores_leave_the_tables_of_the_last_run_whole(tmp_path, scores):
    for name in ("params.yaml", "stages", "metrics/seed.json", "metrics/accuracy.json", "metrics/table.md"):
        (tmp_path / name).symlink_to(PROJECT / name) if name == "stages" else shutil.copy(PROJECT / name, name)
    (tmp_path / "models").mkdir()
    shutil.copy(MINI / "reference.json", "models")
    spoil(scores / "emopia.csv", "emotion\n")
    before = checksums(tmp_path / "metrics")
    end = run(tmp_path, sys.executable, "stages/table.py")
    assert end.returncode == 1
    assert end.stderr.startswith("Error: metrics/clips/emopia.csv: is damaged")
    assert checksums(tmp_path / "metrics") == before
    assert not (tmp_path / "plots").exists()


# Clips


@pytest.fixture
def folder(tmp_path):
    """Four clips of 1 s."""
    params = small(duration=1, evaluation__clips_per_emotion=2, prompts__emotions=["happy", "sad"])
    asked = clips.evaluation_prompts(params)
    clips.save(tmp_path / "clips", [0.1 * torch.ones(16_000)] * 4, 16_000, asked)
    return tmp_path / "clips", params


def listen(folder: Path, params) -> list:
    index, _ = clips.load(folder, params)
    return list(clips.waveforms(folder, list(index["clip"]), 2, params.duration))


def wav(samples: np.ndarray, rate: int):
    def write(path: Path) -> None:
        soundfile.write(path, samples, rate)

    return write


SOUNDS = {
    "48 kHz": wav(np.zeros(48_000), 48_000),
    "no samples": wav(np.zeros(0), 16_000),
    "half": wav(np.zeros(8_000), 16_000),
    "many channels": wav(np.zeros((100, 1000)), 16_000),
    "a pipe": lambda path: spoil(path, None),
    "empty": lambda path: spoil(path, ""),
    "cut": lambda path: spoil(path, path.read_bytes()[:1000]),
}


@pytest.mark.parametrize("change", SOUNDS.values(), ids=SOUNDS)
@pytest.mark.parametrize("which", [0, 3])
def test_a_strange_clip_is_named(folder, change, which):
    folder, params = folder
    assert len(listen(folder, params)) == 2
    path = sorted(folder.glob("*.wav"))[which]
    change(path)
    if which or path.stat().st_size < 16_000:
        refused(path, listen, folder, params)
    else:  # the first one is what the others are compared with
        with pytest.raises(UserError, match=str(folder)):
            listen(folder, params)


@pytest.mark.parametrize("edit", [lambda t: t[:-1], lambda t: t.replace("sad", "happy"), lambda t: t.iloc[::-1]])
def test_an_index_that_is_not_the_one_of_params_yaml_is_named(folder, edit):
    folder, params = folder
    change(folder / "index.csv", edit)
    refused(folder / "index.csv", listen, folder, params)


def test_sound_that_is_not_finite_is_not_written(tmp_path):
    with pytest.raises(UserError, match=r"a\.wav: not written, because the waveform is not finite"):
        audio.write(tmp_path / "a.wav", torch.tensor([0.0, float("nan")]), 16_000)
    assert not (tmp_path / "a.wav").exists()


# Checkpoints


class Odd:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ([1], "contains a list"),
        ({"state_dict": [torch.zeros(1)]}, "state_dict is a list"),
        ({"state_dict": {}}, "no weights"),
        ({"state_dict": {1: torch.zeros(1)}}, "no text"),
        ({"state_dict": {"a": torch.zeros(3).to_sparse()}}, "dense"),
        ({"state_dict": {"a": torch.zeros(3, device="meta")}}, "dense"),
        ({"state_dict": {"a": torch.zeros(1).expand(10**12)}}, "fewer numbers"),
        ({"state_dict": {"a": torch.tensor(float("nan"))}}, "not finite"),
        ({"state_dict": {"a": torch.zeros(1)}, "hook": Odd()}, "'posix.system'"),
    ],
    ids=["a list", "states a list", "no states", "numbered", "sparse", "meta", "expanded", "NaN", "code"],
)
def test_a_strange_checkpoint_is_named_with_the_way_out(tmp_path, content, word):
    path = tmp_path / "best.ckpt"
    torch.save(content, path)
    message = refused(path, checkpoints.state_dict, path, "model.", way_out="get another")
    assert word in message
    assert "get another" in message
    assert "weights_only" not in message


def test_settings_that_frameworks_save_beside_the_weights_are_passed_over(tmp_path):
    content = {"state_dict": {"model.a": torch.ones(2)}, "hyper_parameters": argparse.Namespace(lr=[1, Path("x")])}
    torch.save(content, tmp_path / "best.ckpt")
    read = checkpoints.state_dict(tmp_path / "best.ckpt", "model.")
    assert torch.equal(read["a"], torch.ones(2))
    assert isinstance(checkpoints.read(tmp_path / "best.ckpt")["hyper_parameters"], checkpoints.Nothing)


def test_an_error_never_repeats_the_advice_to_execute_a_checkpoint(tmp_path):
    torch.save({"x": Odd()}, tmp_path / "a.pt")
    with pytest.raises(Exception, match="weights_only") as caught:
        torch.load(tmp_path / "a.pt", weights_only=True)
    assert "weights_only" not in in_one_line(caught.value, 10_000)


# EMOPIA's settings and places


SETTINGS = yaml.safe_load((MINI / "rewards" / "emopia" / "hparams.yaml").read_text())


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("wav", "sr", 0), ("wav", "sr", 1), ("wav", "sr", "abc"), ("wav", "input_length", 0),
        ("wav", "input_length", None), ("wav", "input_length", "abc"), ("wav", "input_length", float("nan")),
        ("hparams", "n_mels", 10**9), ("hparams", "n_fft", 0), ("hparams", "f_min", [1]), ("hparams", "n_channels", -1),
    ],
)  # fmt: skip
def test_settings_of_emopia_out_of_range_are_named(tmp_path, group, key, value):
    content = {name: dict(values) for name, values in SETTINGS.items() if isinstance(values, dict)}
    content[group][key] = value
    path = tmp_path / "hparams.yaml"
    path.write_text(yaml.safe_dump(content))
    assert f"{group}.{key}" in refused(path, read_hparams, tmp_path)


@pytest.mark.parametrize("content", [*NO_TEXT.values(), "a: " * 3, "x" * 2_000_000], ids=[*NO_TEXT, "no YAML", "large"])
def test_damaged_settings_of_emopia_are_named(tmp_path, content):
    refused(spoil(tmp_path / "hparams.yaml", content), read_hparams, tmp_path)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("best_weight/wav/ar_va/hparams.yaml", b"\0" * 50_000_000)
        archive.writestr("best_weight/wav/ar_va/best.ckpt", b"")
    assert "50 MB, more than 1 MB" in refused(path, weights.fetch, str(path), tmp_path / "target")


def test_a_folder_is_not_searched_for_some_checkpoint(tmp_path):
    far = tmp_path / "home" / "somebody" / "project" / "best_weight" / "wav" / "ar_va"
    far.mkdir(parents=True)
    for name in ("best.ckpt", "hparams.yaml"):
        (far / name).write_text("x")
    message = refused(tmp_path, weights.fetch, str(tmp_path), tmp_path / "target")
    assert "Cyan0731/rl_final" in message


# Manifests and weights


@pytest.fixture
def models(tmp_path) -> Path:
    """The files of `models/` that these tests read."""
    folder = tmp_path / "models"
    shutil.copytree(MINI / "rewards" / "emopia", folder / "rewards" / "emopia")
    write_json(folder / "rewards" / "emopia" / "settings.json", {"windows": "cover"})
    known = {"weights": checksums(folder / "rewards" / "emopia"), "shortest_clip": 3.0}
    write_json(folder / "rewards" / "emopia" / "manifest.json", known)
    shutil.copytree(MINI / "pipeline" / "scheduler", folder / "pipeline" / "scheduler")
    shutil.copy(MINI / "pipeline" / "model_index.json", folder / "pipeline")
    write_json(folder / "manifest.json", checksums(folder / "pipeline"))
    return folder


@pytest.mark.parametrize(
    "content",
    [
        *NO_TEXT.values(),
        '{"weights": 3}',
        '{"mix": {"emopia": "x"}}',
        '{"mix": {"emopia": NaN}}',
        "[]",
        '{"mix": {"emopia": 1}}',
        '{"needs": {"clap": {}}}',
        '{"needs": {"clap": 3}}',
    ],
    ids=[*NO_TEXT, "no checksums", "no weight", "NaN", "a list", "a mixture of itself", "needs {}", "needs 3"],
)
def test_a_damaged_manifest_of_a_reward_is_named(models, content):
    path = spoil(models / "rewards" / "emopia" / "manifest.json", content)
    assert "dvc repro -f fetch" in refused(path, load_reward, "emopia", models, CPU)


def test_altered_weights_and_settings_are_refused_by_their_checksums(models):
    assert load_reward("emopia", models, CPU).window == 3
    check_pipeline(models)
    settings = models / "rewards" / "emopia" / "hparams.yaml"
    settings.write_text(settings.read_text() + "\n")
    assert "altered" in refused(settings, load_reward, "emopia", models, CPU)
    scheduler = models / "pipeline" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace("1000", "10"))
    assert "altered" in refused(scheduler, check_pipeline, models)
    check_pipeline(models, ["model_index"])  # other parts do not matter


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    refused(tmp_path / "a", verify, tmp_path / "a", "x", "run again")


def test_weights_and_scores_that_are_not_finite_name_their_reward(models):
    path = models / "rewards" / "emopia" / "model.safetensors"
    states = load_file(path)
    states["dense2.bias"][0] = float("nan")
    save_file(states, path)
    assert "dense2.bias" in refused(path, Emopia.of_folder, path.parent, CPU, "cover")

    judge = mini_emopia()
    judge.networks[0].dense2.bias.data[0] = float("nan")
    sound = 0.1 * torch.rand(2, 5 * 16_000)
    with pytest.raises(UserError, match=r"^reward emopia: value is not finite for 2 of 2 clips"):
        judge.score(sound, 16_000, make_prompts("a {emotion} {instrument}", ["sad", "happy"], ["piano"]))


def test_a_file_outside_a_repository_is_not_requested_and_no_password_is_shown(monkeypatch):
    for name in ("../x", "/etc/passwd"):
        with pytest.raises(UserError, match="is not the path of a file"):
            hub.file("lukewys/laion_clap", name)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "https://me:secret@hub.example")
    message = hub._unreachable("a/b", OSError("no route to https://me:secret@hub.example/a/b"))
    assert "secret" not in message
    assert "https://hub.example" in message


# Adapters


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "emopia"
    saved_adapter(folder)
    return folder


def edited(trained: Path, target: Path, config: dict | None = None, weights=None) -> Path:
    shutil.copytree(trained, target)
    path = target / "adapter_config.json"
    path.write_text(str(yaml.safe_dump(read_json(path) | (config or {}), default_flow_style=True, width=10**6)))
    write_json(path, yaml.safe_load(path.read_text()))
    if weights is not None:
        states = load_file(target / "adapter_model.safetensors")
        save_file({name: weights(x) for name, x in states.items()}, target / "adapter_model.safetensors")
    return target


def test_a_regular_expression_in_an_adapter_is_never_used(trained, tmp_path):
    folder = edited(trained, tmp_path / "slow", {"target_modules": "(([a-z._0-9])+)+$!"})
    generator, started = load_generator(), time.perf_counter()
    adapter.load(generator, folder)
    assert time.perf_counter() - started < 30
    same = dict(generator.unet.named_parameters())
    adapter.load(again := load_generator(), trained)
    assert all(torch.equal(same[name], x) for name, x in again.unet.named_parameters())


@pytest.mark.parametrize(
    ("config", "weights", "word"),
    [
        ({"peft_type": "IA3"}, None, "IA3"),
        ({"rank_pattern": {"(x+x+)+y": 4}}, None, "rank_pattern"),
        ({"r": 5}, None, "rank 5"),
        ({}, lambda x: x.long(), "I64"),
    ],
)
def test_an_adapter_that_is_not_plain_lora_is_named(trained, tmp_path, config, weights, word):
    folder = edited(trained, tmp_path / "odd", config, weights)
    assert word in refused(folder, adapter_files.check, folder)


def test_an_adapter_with_weights_that_are_not_finite_is_named(trained, tmp_path):
    folder = edited(trained, tmp_path / "nan", weights=lambda x: x * float("nan"))
    assert "not finite" in refused(folder, adapter.load, load_generator(), folder)


def test_the_advice_for_an_adapter_that_is_damaged_in_dvcs_cache_too_brings_it_back(tmp_path):
    folder = tmp_path / "models" / "adapters" / "x"
    path = folder / "adapter_model.safetensors"
    stage = {"cmd": f"mkdir -p {folder} && seq 5000 > {path}", "outs": [str(path.relative_to(tmp_path))]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stage}}))

    def shell(command: str) -> None:
        done = run(tmp_path, "bash", "-c", command)
        assert done.returncode == 0, done.stdout + done.stderr

    shell("git init -q && dvc init -q")
    shutil.copy(PROJECT / ".dvc" / "config", tmp_path / ".dvc" / "config")
    shell("dvc repro")
    whole = path.read_bytes()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(bytes(200))
    path.chmod(0o444)
    advice = adapter_files.restore(folder.relative_to(tmp_path)).split("`")
    shell(f"{advice[1]} && {advice[3]}")
    assert path.read_bytes() == whole


# Locks and signals


def test_make_repro_removes_an_empty_lock_of_a_killed_dvc_and_no_other(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(PROJECT / "Makefile", tmp_path)
    for name in ("requirements.txt", "pyproject.toml", "metrics/table.md", ".dvc/tmp/rwlock", ".venv/ready"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    spoil(tmp_path / ".venv" / "bin" / "dvc", "#!/bin/sh\n").chmod(0o755)
    lock = tmp_path / ".dvc" / "tmp" / "rwlock"

    def repro() -> bool:
        done = run(tmp_path, "make", "repro")
        assert done.returncode == 0, done.stderr
        return lock.exists()

    assert not repro()
    assert not repro()
    lock.write_text("{}")
    assert repro()
    lock.write_text("")
    with (tmp_path / ".dvc" / "tmp" / "rwlock.lock").open("a") as guard:
        import fcntl

        fcntl.flock(guard, fcntl.LOCK_EX)
        assert repro()
    assert not repro()


def test_ctrl_c_while_a_stage_imports_ends_it_without_a_traceback(tmp_path):
    code = "import beside, os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(5)"
    done = run(PROJECT, sys.executable, "-c", code, env={"PYTHONPATH": "stages"})
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
