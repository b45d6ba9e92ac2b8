"""Pickled checkpoints: read without executing anything in them."""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from music_ddpo.core.errors import UserError, in_one_line
from music_ddpo.core.files import digest

# What training frameworks save beside the weights: settings. They are read as nothing, under these names.
SETTINGS = re.compile(
    r"(omegaconf|pathlib)\..+|typing\.Any|collections\.defaultdict|argparse\.Namespace"
    r"|pytorch_lightning\.utilities\.parsing\.AttributeDict"
)
AGAIN = "download the file again from its authors"


class Nothing:
    """Stands for a settings object of a checkpoint: accepts any content and keeps none."""

    def __new__(cls, *_: Any, **__: Any) -> Nothing:
        """The same for any arguments."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def read(path: Path, name: str = "", way_out: str = AGAIN) -> dict:
    """The content of a pickled torch checkpoint: tensors, plain values, and `Nothing` in place of settings objects.

    Parameters
    ----------
    name
        Its name in an error, if it was unpacked from an archive.
    way_out
        What the user can do about a checkpoint that is rejected.

    Raises
    ------
    UserError
        If it contains an object that would have to be executed (nothing is), which the message names, or is damaged.
    """
    name = name or str(path)
    scalar = np.core.multiarray.scalar  # type: ignore[attr-defined]
    allowed: list[Any] = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    allowed += [np.dtype, np.dtypes.Float64DType]
    try:
        with torch.serialization.safe_globals(allowed):
            packed = zipfile.is_zipfile(path)  # the format of torch.save since 2020; it can be searched beforehand
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path) if packed else []
            refused = sorted(n for n in unknown if not SETTINGS.fullmatch(n))
            if refused:
                raise UserError(
                    f"{name}: rejected: it contains the object {refused[0]!r}, which weights do not need. Nothing in "
                    f"it was executed; {way_out}."
                )
            with torch.serialization.safe_globals([(Nothing, n) for n in unknown]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)|<class '(\S+)'>", str(error))
        what = f"requests {found[1] or found[2]!r}" if found else "is not a plain pickle of tensors"
        raise UserError(
            f"{name}: rejected: it {what}, which weights do not need. Nothing in it was executed; {way_out}."
        ) from None
    except UserError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise UserError(
            f"{name}: is truncated or damaged ({in_one_line(error, 150)}); remove it and run again."
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{name}: is not a checkpoint: it contains a {type(content).__name__}; {way_out}.")
    return content


def git_object(path: Path) -> str:
    """The id that git gives to a file's content: what `git hash-object` prints."""
    start = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    return digest(path, start.copy)


def state_dict(path: Path, prefix: str, name: str = "", way_out: str = AGAIN) -> dict[str, torch.Tensor]:
    """The weights in a training checkpoint, with `prefix` removed from their names.

    Raises
    ------
    UserError
        As `read` does, or if it has no weights, or some that are not plain tensors of finite numbers.
    """
    content = read(path, name, way_out)
    states = content.get("state_dict", content)
    if not isinstance(states, dict):
        raise UserError(f"{name or path}: its state_dict is a {type(states).__name__}, not a dict; {way_out}.")
    weights = {key: x for key, x in states.items() if isinstance(x, torch.Tensor)}
    if not weights:
        raise UserError(f"{name or path}: contains no weights; {way_out}.")
    for key, x in weights.items():
        wrong = "has a name that is no text" if not isinstance(key, str) else _strange(x)
        if wrong:
            raise UserError(f"{name or path}: the weight {str(key)[:100]!r} {wrong}; {way_out}.")
    return {key.removeprefix(prefix): x.contiguous().clone() for key, x in weights.items()}


def _strange(x: torch.Tensor) -> str:
    """What a tensor has that no checkpoint of weights has; an empty string if nothing."""
    if x.layout != torch.strided or x.is_quantized or x.is_meta:
        return "is not an ordinary dense tensor"
    if x.numel() * x.element_size() > x.untyped_storage().nbytes():
        return f"has the shape {tuple(x.shape)} but fewer numbers"
    return "" if x.isfinite().all() else "contains numbers that are not finite"
