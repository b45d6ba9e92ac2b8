"""An adapter on the hub: what is uploaded, and what is said if it is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from helpers.hub import Hub
from helpers.project import run, set_params, small
from music_ddpo.measuring import clips

KNOBS = {"duration": 1, "evaluation__clips_per_emotion": 2}
WAYS = [
    f"clips/{emotion}-{model}.wav" for emotion in ("happy", "angry", "sad", "tender") for model in ("original", "clap")
]


@pytest.fixture
def project(tmp_path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    set_params(folder, **KNOBS)
    asked = clips.evaluation_prompts(small(**KNOBS))
    for i, name in enumerate(("baseline", "clap")):
        clips.save(folder / "clips" / name, [torch.full((16000,), 0.1 * (i + 1))] * len(asked), 16000, asked)
    adapter = folder / "models" / "adapters" / "clap"
    adapter.mkdir(parents=True)
    for name, content in (
        ("adapter_config.json", b"{}"),
        ("adapter_model.safetensors", b"weights"),
        ("README.md", b"# Card\n"),
    ):
        (adapter / name).write_bytes(content)
    return folder


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "hub").mkdir()
    with Hub(tmp_path / "hub") as up:
        yield up


def publish(project: Path, hub: Hub, *options: str, token: str = Hub.token, repo: str = "owner/name"):
    environment = hub.environment(project / "home") | {"HF_TOKEN": token}
    return run(project, "music-ddpo", "publish", "clap", "--repo", repo, *options, env=environment)


def test_an_adapter_is_published_with_its_card_and_clips_and_again_over_it(project, hub):
    for _ in range(2):
        done = publish(project, hub)
        assert done.returncode == 0, done.stderr
    assert f"Published: {hub.url}/owner/name" in done.stdout
    found = hub.uploaded["owner/name"]
    assert sorted(found) == sorted(["adapter_config.json", "adapter_model.safetensors", "README.md", *WAYS])
    assert found["adapter_model.safetensors"] == b"weights"
    first = project / "clips" / "baseline" / "002-sad-piano.wav"
    assert found["clips/sad-original.wav"] == first.read_bytes() != found["clips/sad-clap.wav"]
    card = found["README.md"].decode()
    assert card.startswith("# Card\n")
    assert "- [sad-clap](clips/sad-clap.wav)" in card


def test_a_dry_run_lists_the_files_and_asks_nobody(project, hub):
    done = publish(project, hub, "--dry-run")
    assert done.returncode == 0
    assert [line.split(" (")[0] for line in done.stdout.splitlines()][-len(WAYS) :] == WAYS
    assert hub.requests == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"token": ""}, "Error: owner/name: the hub does not let you write there (401); log in with `hf auth login`"),
        ({"token": "hf_wrong"}, "Error: owner/name: the hub does not let you write there (401); log in"),
        ({"repo": "name"}, "Error: --repo: 'name' must be owner/name"),
        ({"repo": "a b/c"}, "Error: --repo: 'a b/c' must be owner/name"),
    ],
)
def test_what_is_refused_is_one_line(project, hub, options, told):
    done = publish(project, hub, **options)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(told)
    assert hub.uploaded == {}


def test_what_is_missing_is_named(project, hub):
    shutil.rmtree(project / "models")
    done = publish(project, hub)
    assert done.stderr == "Error: models/adapters/clap/adapter_config.json: not found; run `dvc repro` first.\n"
