"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from music_ddpo.errors import UserError


@contextmanager
def whole(path: Path | str) -> Iterator[Path]:
    """Yields a path beside `path` to write to; renames it to `path` at the end, or removes it on failure.

    Raises
    ------
    UserError
        When the disk is full or the place may not be written to.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(partial)
        yield partial
        partial.stat()  # before the old content goes
        if path.is_dir() or partial.is_dir():  # a file takes a file's place in one step
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
    errno.EFBIG: "the file grew over this system's size limit (ulimit -f); raise it and run again",
    errno.EACCES: "there is no permission to write there; change it and run again",
    errno.EPERM: "there is no permission to write there; change it and run again",
    errno.EROFS: "that file system is read-only; make it writable and run again",
    errno.ENOTDIR: "a file stands where a folder is needed; move it away and run again",
    errno.EEXIST: "a file stands where a folder is needed; move it away and run again",
}


def _reason(error: Exception, partial: Path) -> str | None:
    """Why writing failed, where the system is to blame. Libraries hide its word, so a probe asks again."""
    told = re.search(r"os error (\d+)", str(error))  # safetensors is written in Rust
    code = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
    if code in REASONS:
        return REASONS[code]
    probe = partial.with_name(".probe.partial")
    largest = max((p.stat().st_size for p in [partial, *partial.rglob("*")] if p.is_file()), default=0)
    try:
        with probe.open("wb") as file:
            file.seek(largest)  # a size limit is met where the largest file met it; what is skipped takes no space
            file.write(bytes(1 << 20))
    except OSError as probed:
        return REASONS.get(probed.errno)
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path | str, content: dict) -> None:
    with whole(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def write_text(path: Path | str, content: str) -> None:
    with whole(path) as partial:
        partial.write_text(content)
