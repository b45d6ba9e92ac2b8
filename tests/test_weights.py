"""Copying the shipped weights: what is missing, truncated or altered stops before anything is written."""

import json
import re

import pytest

from music_ddpo.core.errors import UserError
from music_ddpo.core.files import checksums, digest
from music_ddpo.weights.shipped import MANIFEST, copy, read_reference

FILES = {
    "pipeline/model_index.json": "{}",
    "pipeline/unet/model.safetensors": "the UNet's weights",
    "rewards/clap/model.safetensors": "the judge's weights",
    "rewards/emopia/hparams.yaml": "wav: {}",
    "reference.json": '{"clap": {"piano": {"sad": 0.5}}}',
}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (folder / MANIFEST).write_text(json.dumps(checksums(folder)))
    return folder


def found(folder):
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_part_is_copied_as_it_is(source, tmp_path):
    revision = copy(source, "rewards/clap", tmp_path / "clap")
    assert found(tmp_path / "clap") == {"model.safetensors": "the judge's weights"}
    assert revision == f"manifest {digest(source / MANIFEST)[:12]}"
    assert read_reference(source) == {"clap": {"piano": {"sad": 0.5}}}


def test_a_part_that_the_model_does_not_have_is_a_clear_error(source, tmp_path):
    with pytest.raises(UserError, match="lists no files in rewards/bright/"):
        copy(source, "rewards/bright", tmp_path / "bright")


def test_a_file_that_the_manifest_does_not_list_is_not_copied(source, tmp_path):
    (source / "pipeline" / "evil.bin").write_text("x")
    copy(source, "pipeline", tmp_path / "pipeline")
    assert "evil.bin" not in found(tmp_path / "pipeline")


def test_copying_again_leaves_nothing_of_the_old_weights(source, tmp_path):
    copy(source, "pipeline", tmp_path / "pipeline")
    (tmp_path / "pipeline" / "old.bin").write_text("x")
    copy(source, "pipeline", tmp_path / "pipeline")
    assert sorted(p.name for p in (tmp_path / "pipeline").iterdir()) == ["model_index.json", "unet"]


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
        copy(source, name.rpartition("/")[0], tmp_path / "models")
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
        b'{"rewards/clap/model.safetensors": "44"}',
        b'{"pipeline/model_index.json": "44", "pipeline/../../../x": "44"}',
        b'{"pipeline/model_index.json": "44", "/x": "44"}',
        b"[" * 100_000,
    ],
    ids=[
        "missing",
        "empty",
        "cut",
        "no text",
        "no mapping",
        "no entries",
        "no checksum",
        "no pipeline",
        "outside",
        "absolute",
        "nested",
    ],
)
def test_a_garbled_manifest_gives_an_error_that_names_it_and_nothing_is_written(source, tmp_path, content):
    path = source / MANIFEST
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path))):
        copy(source, "rewards/clap", tmp_path / "models")
    assert not (tmp_path / "models").exists()
