"""Pickled checkpoints: read without executing anything in them."""

from __future__ import annotations

import hashlib
import pickle
import re
from pathlib import Path

import numpy as np
import torch

from music_ddpo.core.errors import UserError, in_one_line
from music_ddpo.core.files import digest


def read(path: Path, name: str = "") -> dict:
    """The content of a pickled torch checkpoint: tensors and plain values, nothing else.

    Parameters
    ----------
    name
        Its name in an error, if it was unpacked from an archive.

    Raises
    ------
    UserError
        If it contains anything that would have to be executed (nothing is), or is damaged.
    """
    name = name or str(path)
    scalar = np.core.multiarray.scalar  # type: ignore[attr-defined]
    allowed = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals([*allowed, np.dtype, np.dtypes.Float64DType]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"requests {asked[1]!r}" if asked else "is not a plain pickle of tensors"
        raise UserError(
            f"{name}: rejected: it {what}, which weights do not need. Nothing in it was executed. Download the file "
            "again from its authors."
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f"{name}: is truncated or damaged ({in_one_line(error)}); remove it and run again.") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{name}: is not a checkpoint: it contains a {type(content).__name__}; download the file again."
        )
    return content


def git_object(path: Path) -> str:
    """The id that git gives to a file's content: what `git hash-object` prints."""
    start = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    return digest(path, start.copy)


def state_dict(path: Path, prefix: str, name: str = "") -> dict[str, torch.Tensor]:
    """The weights in a training checkpoint, with `prefix` removed from their names."""
    content = read(path, name)
    states = content.get("state_dict", content)
    return {
        key.removeprefix(prefix): x.contiguous().clone() for key, x in states.items() if isinstance(x, torch.Tensor)
    }
