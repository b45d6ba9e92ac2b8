"""Fetching weights: what is missing, truncated or altered stops before anything is written."""

import json
import re

import pytest
from music_ddpo.errors import UserError
from music_ddpo.params import load
from music_ddpo.weights.registry import SHIPPED

from music_ddpo.weights import fetch as weights

SETTINGS = load().weights

FILES = {
    "pipeline/model_index.json": "{}",
    "pipeline/unet/model.safetensors": "the UNet's weights",
    "rewards/clap/model.safetensors": "the judge's weights",
    "rewards/emopia/hparams.yaml": "wav: {}",
    "reference.json": '{"clap": 0.5}',
}


@pytest.fixture
def source(tmp_path, monkeypatch):
    folder = tmp_path / "source"
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (folder / weights.MANIFEST).write_text(json.dumps(weights.manifest(folder)))
    monkeypatch.setitem(SHIPPED, "tiny", folder)
    return folder


def found(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_fetch_copies_the_pipeline_and_the_rewards_and_writes_a_manifest(source, tmp_path):
    target = tmp_path / "models"
    weights.fetch("tiny", SETTINGS, ["clap", "emopia"], target)
    fetched = found(target)
    manifest = json.loads(fetched.pop("manifest.json"))
    assert json.loads(fetched.pop("reference.json")) == {"clap": 0.5}
    assert fetched == {name: content for name, content in FILES.items() if name != "reference.json"}
    assert manifest == {name: weights.digest(source / name) for name in FILES}


def test_fetch_takes_only_the_rewards_that_are_asked_for(source, tmp_path):
    weights.fetch("tiny", SETTINGS, ["clap"], tmp_path / "models")
    assert [p.name for p in (tmp_path / "models" / "rewards").iterdir()] == ["clap"]
    assert "rewards/emopia/hparams.yaml" not in json.loads((tmp_path / "models" / "manifest.json").read_text())


def test_a_file_that_the_manifest_does_not_know_is_not_copied(source, tmp_path):
    (source / "pipeline" / "evil.bin").write_text("x")
    weights.fetch("tiny", SETTINGS, ["clap"], tmp_path / "models")
    assert "pipeline/evil.bin" not in found(tmp_path / "models")


def test_fetching_again_leaves_nothing_of_the_old_weights(source, tmp_path):
    target = tmp_path / "models"
    weights.fetch("tiny", SETTINGS, ["clap"], target)
    (target / "pipeline" / "old.bin").write_text("x")
    weights.fetch("tiny", SETTINGS, ["clap"], target)
    assert sorted(p.name for p in (target / "pipeline").iterdir()) == ["model_index.json", "unet"]


@pytest.mark.parametrize("name", ["pipeline/unet/model.safetensors", "rewards/clap/model.safetensors"])
@pytest.mark.parametrize(
    ("harm", "word"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_text(path.read_text()[:-1]), "truncated or altered"),
        (lambda path: path.write_text("T" + path.read_text()[1:]), "truncated or altered"),
    ],
    ids=["missing", "truncated", "altered"],
)
def test_a_harmed_file_gives_an_error_that_names_it_and_nothing_is_written(source, tmp_path, name, harm, word):
    harm(source / name)
    with pytest.raises(UserError, match=re.escape(f"{source / name}: ") + f".*{word}"):
        weights.fetch("tiny", SETTINGS, ["clap", "emopia"], tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b'{"pipeline/model_index.json": "44',
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"pipeline/model_index.json": null}',
    ],
    ids=["missing", "empty", "cut", "no text", "no mapping", "no entries", "no checksum"],
)
def test_a_garbled_manifest_gives_an_error_that_names_it_and_nothing_is_written(source, tmp_path, content):
    path = source / weights.MANIFEST
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path))):
        weights.fetch("tiny", SETTINGS, ["clap"], tmp_path / "models")
    assert not (tmp_path / "models").exists()
