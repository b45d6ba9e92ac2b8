"""Reading params.yaml: once at the start of a stage, with one line for the first wrong key."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from music_ddpo.core.errors import LONGEST, UserError, in_one_line, quoted
from music_ddpo.core.params import Params

LARGEST = 64 * 1024  # bytes; the shipped file has 2 kB


def load(path: Path | str = "params.yaml") -> Params:
    """Reads and checks params.yaml, with the parser of DVC: YAML 1.2, where 0777 is 777 and a key may not repeat.

    Raises
    ------
    UserError
        For the first error in it: names the key, the value found, and the values that are allowed.
    """
    text = _read(Path(path))
    try:
        content = YAML(typ="safe", pure=True).load(text)
    except RecursionError:
        raise UserError(f"{path}: is not YAML: it is nested too deeply.") from None
    except MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{path}: is not YAML: {where}{in_one_line(error.problem or error)}.") from None
    except Exception as error:  # of a value: `!!int x` is a ValueError, `!!bool x` a KeyError
        raise UserError(f"{path}: is not YAML: {type(error).__name__}: {in_one_line(error)}.") from None
    return parse(content, str(path))


def _read(path: Path) -> str:
    """The text of a regular file of a sane size."""
    try:
        if not path.exists():
            raise UserError(f"{path}: not found; run this from the project's folder.")
        if not path.is_file():  # reading a pipe or a device might never end
            raise UserError(f"{path}: is not a regular file; restore it with `git checkout {path}`.")
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: has more than {LARGEST // 1024} kB; restore it with `git checkout {path}`.")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error}); save it in that encoding.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from None


def parse(content: Any, source: str = "params.yaml") -> Params:
    """Checks the content of params.yaml; raises as `load` does."""
    if not isinstance(content, dict):
        raise UserError(f"{source}: must contain keys and values, found {type(content).__name__}.")
    try:
        return Params.model_validate(content).settled()
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except ValidationError as error:
        # An unknown key is reported first: if it is misspelt, it is the reason why another one is missing.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise UserError(f"{source}: {_explain(first)}") from None


def _explain(error: Any) -> str:
    location = [_shown(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        known = _keys_at(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"keys here are {', '.join(known)}."
        return f"{key}: is not a known key; {hint}"
    if error["type"] == "missing":
        return f"{key}: is missing; add it (`music-ddpo params {key}` explains it)."
    reason = re.sub("^(Value error, |(Input|String|List|Dictionary) (?=should))", "", error["msg"])
    end = "" if reason.endswith("?") else "."
    if error["type"] == "value_error" and key in ("", "ddpo"):  # a rule about several keys, which names them itself
        return f"{reason}{end}"
    return f"{key}: {quoted(error['input'])} {reason}{end}"


def _shown(part: Any) -> str:
    """A part of a key's name, or its number in a list."""
    return part if isinstance(part, str) and part.isprintable() and len(part) <= LONGEST else quoted(part)


def _keys_at(location: list[str]) -> list[str]:
    group: Any = Params
    for part in location:
        group = group.model_fields[part].annotation
    return list(group.model_fields)
