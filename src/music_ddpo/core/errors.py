"""The exception that a user can cause, and the hint at what was meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class UserError(Exception):
    """Something that a user can correct. The message names the key or file, what was found, and what to do."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at known names that are similar to `name`, or an empty string."""
    close = difflib.get_close_matches(name, [k for k in known if k != name], n=3)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def in_one_line(error: BaseException, length: int = 300) -> str:
    """The message of a library's exception, without line breaks and not longer than `length`.

    Torch's advice to load a checkpoint with `weights_only=False`, which would execute what is in it, is left out.
    """
    sentences = re.split(r"(?<=[.!:])\s+", " ".join(str(error).split()))
    told = " ".join(s for s in sentences if "weights_only" not in s)
    return told[:length] or type(error).__name__
