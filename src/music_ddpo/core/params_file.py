"""Reading params.yaml: once at the start of a stage, with one line for the first wrong key."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from music_ddpo.core.errors import UserError, in_one_line
from music_ddpo.core.params import Params


class YAML(yaml.SafeLoader):
    """PyYAML with the floats of YAML 1.2, which DVC writes: PyYAML alone reads 1e-05 as a string."""


YAML.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load(path: Path | str = "params.yaml") -> Params:
    """Reads and checks params.yaml.

    Raises
    ------
    UserError
        For the first error in it: names the key, the value found, and the values that are allowed.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), YAML)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run this from the project's folder.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML: {in_one_line(error)}") from None
    return parse(content, str(path))


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
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        known = _keys_at(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"keys here are {', '.join(known)}."
        return f"{key}: is not a known key; {hint}"
    if error["type"] == "missing":
        return f"{key}: is missing; add it (`music-ddpo params {key}` explains it)."
    reason = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    end = "" if reason.endswith("?") else "."
    if error["type"] == "value_error" and key in ("", "ddpo"):  # a rule about several keys, which names them itself
        return f"{reason}{end}"
    return f"{key}: {error['input']!r} {reason}{end}"


def _keys_at(location: list[str]) -> list[str]:
    group: Any = Params
    for part in location:
        group = group.model_fields[part].annotation
    return list(group.model_fields)
