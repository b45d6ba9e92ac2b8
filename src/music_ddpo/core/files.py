"""Files and folders that are written completely or not at all, and JSON files of earlier stages."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from music_ddpo.core.errors import UserError


@contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to; renames it to `path` at the end, or removes it on failure.

    Raises
    ------
    UserError
        If the disk is full or writing is not permitted.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(partial)
        yield partial
        partial.stat()  # fails if nothing was written, before the old content is removed
        if path.is_dir() or partial.is_dir():  # a file replaces a file atomically
            remove(path)
        os.replace(partial, path)
    except UserError:
        raise
    except Exception as error:
        reason = _reason(error, partial)
        if reason is None:
            raise
        raise UserError(f"{path}: could not be written: {reason}.") from error
    finally:
        with suppress(OSError):
            remove(partial)


REASONS = {
    errno.ENOSPC: "no space is left on the disk; free some and run again",
    errno.EDQUOT: "the disk quota is used up; free some space and run again",
    errno.EFBIG: "the file exceeds this system's file size limit (ulimit -f); raise it and run again",
    errno.EACCES: "there is no permission to write there; change it and run again",
    errno.EPERM: "there is no permission to write there; change it and run again",
    errno.EROFS: "that file system is read-only; make it writable and run again",
    errno.ENOTDIR: "there is a file where a folder is needed; move it and run again",
    errno.EEXIST: "there is a file where a folder is needed; move it and run again",
}


def _reason(error: Exception, partial: Path) -> str | None:
    """Why writing failed, if the system refused it. Libraries hide the error code, so a test file is written."""
    told = re.search(r"os error (\d+)", str(error))  # safetensors is written in Rust
    code = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    if code in REASONS:
        return REASONS[code]
    probe = partial.with_name(".probe.partial")
    largest = max((p.stat().st_size for p in [partial, *partial.rglob("*")] if p.is_file()), default=0)
    try:
        with probe.open("wb") as file:
            file.seek(largest)  # a size limit is reached where the largest file reached it; a hole takes no space
            file.write(bytes(1 << 20))
    except OSError as probed:
        return REASONS.get(probed.errno or 0)
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


def remove(path: Path) -> None:
    """Removes a file or a folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path | str, content: dict) -> None:
    """Writes a JSON file completely or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path | str, content: str) -> None:
    """Writes a text file completely or not at all."""
    with whole(path) as partial:
        partial.write_text(content)


def existing(path: Path | str) -> Path:
    """The path of an earlier stage's output; `UserError` if it does not exist."""
    if not Path(path).is_file():
        raise UserError(f"{path}: not found; run `dvc repro`, which writes it.")
    return Path(path)


def read_json(path: Path | str) -> dict[str, Any]:
    """An earlier stage's JSON output; `UserError` if it does not exist or is damaged."""
    try:
        content = json.loads(existing(path).read_text())
        if isinstance(content, dict):
            return content
    except ValueError:
        pass
    raise UserError(f"{path}: is damaged; remove it and run `dvc repro`, which writes it again.")


def read_seed() -> int:
    """The seed of the study, which stage `seed` has written."""
    path = "metrics/seed.json"
    seed = read_json(path).get("seed")
    if not isinstance(seed, int):
        raise UserError(f"{path}: contains no seed; run `dvc repro -f seed`, which writes it again.")
    return seed


def digest(path: Path, start: Callable = hashlib.sha256) -> str:
    """The hexadecimal digest of a file's content, with the hash that `start` begins."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, start).hexdigest()


def checksums(folder: Path, pattern: str = "*") -> dict[str, str]:
    """SHA-256 of every file below a folder whose name matches `pattern`, by relative path."""
    files = sorted(p for p in folder.rglob(pattern) if p.is_file())
    return {p.relative_to(folder).as_posix(): digest(p) for p in files}
