"""Texts in params.yaml: one line of a sane length, and what can be a file's name, a path or a repository on the hub."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field

HUB_ID = r"([A-Za-z0-9][A-Za-z0-9_.-]*/)?[A-Za-z0-9][A-Za-z0-9_.-]*"


def is_hub_id(text: str) -> bool:
    """Whether a text has the form owner/name of a repository on the Hugging Face hub."""
    return "/" in text and len(text) <= 96 and bool(re.fullmatch(HUB_ID, text))


def path_of(text: str) -> Path | None:
    """The path that a text names, `~` replaced; None if it names none: an unknown user, a name that is too long."""
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError):
        return None
    return path


def one_line(text: str) -> str:
    """The text; `ValueError` if it has a character that is not plain text, like a line break."""
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):  # control, half a surrogate pair, separators
            raise ValueError(f"must be one line of plain text; it has the character {character!r}")
    return text


def _inside(file: str) -> str:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("must be the path of a file in the repository, without '..'")
    return file


def _place(text: str) -> str:
    if path_of(text) is None:
        raise ValueError("must be a path that this system can look for")
    return text


Text = Annotated[str, Field(max_length=1000), AfterValidator(one_line)]
FilledText = Annotated[Text, Field(min_length=1)]
Name = Annotated[Text, Field(max_length=50)]  # part of a file's name, which has at most 255 bytes
Place = Annotated[FilledText, AfterValidator(_place)]  # whether it exists, only `fetch` has to know
FileInside = Annotated[FilledText, AfterValidator(_inside)]
HubId = Annotated[str, Field(max_length=96, pattern=f"^{HUB_ID}$")]
