"""The exception that a user can cause, and the hint at what was meant."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """Something that a user can correct. The message names the key or file, what was found, and what to do."""


LONGEST = 80  # characters of a value that a message quotes
_CUT = reprlib.Repr()
_CUT.maxstring = _CUT.maxlong = _CUT.maxother = LONGEST
_CUT.maxlevel = 3


def quoted(value: Any) -> str:
    """A value as a message quotes it: in one line, with what is long or deeply nested cut to about `LONGEST`."""
    try:
        return _CUT.repr(value)
    except ValueError:  # an integer with more digits than Python prints
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at known names that are similar to `name`, or an empty string."""
    close = difflib.get_close_matches(name[:LONGEST], [k for k in known if k != name], n=3)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def in_one_line(error: BaseException | str, length: int = 300) -> str:
    """The message of a library's exception, without line breaks and not longer than `length`.

    Torch's advice to load a checkpoint with `weights_only=False`, which would execute what is in it, is left out.
    """
    sentences = re.split(r"(?<=[.!:])\s+", " ".join(str(error).split()))
    told = " ".join(s for s in sentences if "weights_only" not in s)
    return told[:length] or type(error).__name__
