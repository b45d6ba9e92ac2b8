"""Files and folders that are written completely or not at all, and the checked reading of what earlier stages wrote."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from music_ddpo.core.errors import UserError, in_one_line

LARGEST = 64_000_000  # bytes of a JSON, YAML or CSV file; the largest that the study writes have a few megabytes
AGAIN = "remove it and run `dvc repro`, which writes it again"


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
    """Writes a JSON file completely or not at all; `UserError` for a number that is not finite, which JSON lacks."""
    try:
        text = json.dumps(content, indent=2, allow_nan=False)
    except ValueError:
        key = ", ".join(_not_finite(content, "")) or "a value"
        raise UserError(f"{path}: not written, because {key} is not a finite number.") from None
    write_text(path, text + "\n")


def _not_finite(content: Any, key: str) -> Iterator[str]:
    """The keys of the numbers that are not finite."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from _not_finite(value, f"{key}.{name}" if key else str(name))
    elif isinstance(content, float) and not math.isfinite(content):
        yield key


def write_text(path: Path | str, content: str) -> None:
    """Writes a text file completely or not at all."""
    with whole(path) as partial:
        partial.write_text(content)


def read_text(path: Path | str, way_out: str = AGAIN, most: int = LARGEST) -> str:
    """The content of a text file, UTF-8.

    Parameters
    ----------
    way_out
        What the user can do about a file that is missing or damaged.
    most
        Bytes that it may have.

    Raises
    ------
    UserError
        If it is missing, not a regular file, too large, not readable or not text.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise UserError(f"{path}: not found; {way_out.removeprefix('remove it and ')}.")
        if not path.is_file():  # reading a pipe would wait forever
            raise UserError(f"{path}: is not a regular file; {way_out}.")
        size = path.stat().st_size
        if size > most:
            raise UserError(f"{path}: has {size / 1e6:.0f} MB, more than {most / 1e6:g} MB; {way_out}.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable and run again.") from None
    except ValueError:
        raise UserError(f"{path}: is damaged: it is not text; {way_out}.") from None


def read_json(path: Path | str, kind: Any = dict[str, Any], needs: Sequence[str] = (), way_out: str = AGAIN) -> Any:
    """The content of a JSON file, checked.

    Parameters
    ----------
    kind
        The type that its content must have; numbers must be finite.
    needs
        Keys that it must have.

    Raises
    ------
    UserError
        As `read_text` does, or if it is not JSON or has other content.
    """
    text = read_text(path, way_out)
    finite = None if is_typeddict(kind) else ConfigDict(allow_inf_nan=False)  # a TypedDict has its own configuration
    try:
        content = TypeAdapter(kind, config=finite).validate_json(text, strict=True)
        wrong = "".join([f"{key!r} is missing" for key in needs if key not in content][:1])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part)[:50] for part in first["loc"][:4])
        wrong = f"{key}: {first['msg'][:200]}".removeprefix(": ")
    if wrong:
        raise UserError(f"{path}: is damaged ({wrong}); {way_out}.")
    return content


@contextmanager
def content_of(*paths: Path | str) -> Iterator[None]:
    """Turns an exception that wrong content of these files causes into a `UserError` that names them."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{', '.join(map(str, paths))}: one of these is damaged, or they come from different runs "
            f"({type(error).__name__}: {in_one_line(error, 100)}); remove them and run `dvc repro`."
        ) from error


def read_seed() -> int:
    """The seed of the study, which stage `seed` has written."""
    return read_json("metrics/seed.json", dict[str, Annotated[int, Field(ge=0, lt=2**63)]], ["seed"])["seed"]


def verify(path: Path, expected: str, way_out: str) -> None:
    """`UserError` if a file is missing, or if its SHA-256 is not the expected one."""
    if not path.is_file():
        raise UserError(f"{path}: this file is missing; {way_out}.")
    found = digest(path)
    if found != expected:
        raise UserError(
            f"{path}: this file is truncated or altered (SHA-256 {found[:12]}…, expected {expected[:12]}…); {way_out}."
        )


def digest(path: Path, start: Callable = hashlib.sha256) -> str:
    """The hexadecimal digest of a file's content, with the hash that `start` begins."""
    try:
        with path.open("rb") as content:
            return hashlib.file_digest(content, start).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable and run again.") from None


def checksums(folder: Path, pattern: str = "*") -> dict[str, str]:
    """SHA-256 of every file below a folder whose name matches `pattern`, by relative path."""
    files = sorted(p for p in folder.rglob(pattern) if p.is_file())
    return {p.relative_to(folder).as_posix(): digest(p) for p in files}
