"""Files that are written whole or not at all, and the waveforms in them."""

import os
import re
import subprocess
import sys

import pytest
import torch

from music_ddpo.core import audio
from music_ddpo.core.errors import UserError
from music_ddpo.core.files import whole, write_json, write_text


def put(path, kind, content):
    """Writes `content` as a file, or into a folder of one file."""
    if kind == "folder":
        path.mkdir()
        path = path / "inner"
    path.write_text(content)


def get(path, kind):
    return (path / "inner" if kind == "folder" else path).read_text()


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("before", [None, "old"])
def test_written_content_replaces_the_old_content_completely(tmp_path, kind, before):
    target = tmp_path / "new" / "target"
    if before:
        target.parent.mkdir()
        put(target, kind, before)
    with whole(target) as partial:
        put(partial, kind, "new")
        assert target.exists() == bool(before)
    assert get(target, kind) == "new"
    assert names(target.parent) == ["target"]


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, UserError])
def test_an_exception_in_the_middle_leaves_the_old_content(tmp_path, kind, error):
    put(tmp_path / "target", kind, "old")

    def write():
        with whole(tmp_path / "target") as partial:
            put(partial, kind, "half")
            raise error("stopped")

    with pytest.raises(error, match="stopped"):
        write()
    assert get(tmp_path / "target", kind) == "old"
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_writing_nothing_leaves_the_old_content(tmp_path, kind):
    put(tmp_path / "target", kind, "old")
    with pytest.raises(FileNotFoundError), whole(tmp_path / "target"):
        pass
    assert get(tmp_path / "target", kind) == "old"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_run_left_behind_is_replaced(tmp_path, kind):
    put(tmp_path / "target.partial", kind, "half")
    write_text(tmp_path / "target", "new")
    assert names(tmp_path) == ["target"]
    assert get(tmp_path / "target", "file") == "new"


# Writes files of 1 MB more than the limit; each library words the system's refusal in its own way.
OVER_THE_LIMIT = """
import resource, sys
import torch
from safetensors.torch import save_file
from music_ddpo.core import audio
from music_ddpo.core.errors import UserError
from music_ddpo.core.files import whole

limit = int(sys.argv[2])
size = limit + 1_000_000
writers = {
    "text": lambda path: path.write_text("x" * size),
    "sound": lambda path: audio.write(path, torch.zeros(size // 2), 16000),
    "weights": lambda path: save_file({"a": torch.zeros(size // 4)}, path),
    "checkpoint": lambda path: torch.save({"a": torch.zeros(size // 4)}, path),
}
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
for name, write in writers.items():
    try:
        with whole(f"{sys.argv[1]}/{name}") as partial:
            write(partial)
    except UserError as error:
        print(error)
    except Exception as error:
        print(f"{name}: {error!r}")
"""


@pytest.mark.parametrize("limit", [64 * 1024, 3_000_000])
def test_a_size_limit_gives_an_error_that_names_the_path(tmp_path, limit):
    command = [sys.executable, "-c", OVER_THE_LIMIT, str(tmp_path), str(limit)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout.splitlines()
    assert [line.partition(" the file exceeds")[0] for line in said] == [
        f"{tmp_path / name}: could not be written:" for name in ("text", "sound", "weights", "checkpoint")
    ]
    assert names(tmp_path) == []


@pytest.mark.parametrize("below", ["target", "folder/target"])
def test_a_file_where_a_folder_is_needed_gives_an_error_that_names_the_path(tmp_path, below):
    (tmp_path / "file").write_text("here")
    target = tmp_path / "file" / below
    with pytest.raises(UserError, match=re.escape(f"{target}: ") + ".*there is a file where a folder is needed"):
        write_json(target, {})
    assert (tmp_path / "file").read_text() == "here"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_gives_an_error_that_names_the_path(tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'target'}: ") + ".*permission"):
            write_text(tmp_path / "target", "new")
    finally:
        tmp_path.chmod(0o755)


def test_sound_comes_back_within_16_bit_precision(tmp_path):
    waveform = 2 * torch.rand(1000, generator=torch.Generator().manual_seed(0)) - 1
    audio.write(tmp_path / "a.wav", waveform, 16000)
    found, sample_rate = audio.read(tmp_path / "a.wav")
    assert sample_rate == 16000
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, waveform, atol=2**-15, rtol=0)


def test_sound_beyond_full_scale_is_clipped_and_does_not_wrap_around(tmp_path):
    audio.write(tmp_path / "a.wav", torch.tensor([1.5, -1.5]), 16000)
    torch.testing.assert_close(audio.read(tmp_path / "a.wav")[0], torch.tensor([1.0, -1.0]), atol=2**-15, rtol=0)


@pytest.mark.parametrize("content", [None, b"", b"no sound"])
def test_a_file_that_is_no_sound_gives_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "a.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path))):
        audio.read(path)


def test_windows_are_whole_and_follow_one_another():
    waveforms = torch.arange(14.0).view(2, 7)
    expected = torch.tensor([[[0.0, 1, 2], [3, 4, 5]], [[7, 8, 9], [10, 11, 12]]])
    assert torch.equal(audio.consecutive(waveforms, 3), expected)
    assert audio.consecutive(waveforms, 8).shape == (2, 0, 8)


@pytest.mark.parametrize(("source", "target"), [(16000, 22050), (44100, 16000), (16000, 16000)])
def test_resampling_keeps_pitch_length_and_loudness(source, target):
    sine = torch.sin(2 * torch.pi * 440 * torch.arange(source) / source)
    found = audio.resample(sine, source, target)
    assert len(found) == target
    assert int(torch.fft.rfft(found).abs().argmax()) == 440  # bins of 1 Hz, for the clip lasts 1 s
    assert found.square().mean().sqrt().item() == pytest.approx(0.5**0.5, rel=0.01)
