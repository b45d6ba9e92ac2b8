"""Brings the weights of a model into models/, verified against their checksums."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from music_ddpo.errors import UserError
from music_ddpo.files import whole, write_json
from music_ddpo.weights.registry import MODELS

MANIFEST = "manifest.json"  # {file: SHA-256}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below `folder`, by relative path."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): sha256(p) for p in files}


def fetch(model: str, rewards: Sequence[str], target: Path) -> None:
    """Puts the pipeline, the rewards and a manifest of their checksums into `target`.

    Writes `pipeline/`, `rewards/<name>/`, `manifest.json` and, where the model has one, `reference.json`:
    the scores of real recordings.

    Raises
    ------
    UserError
        If a file is missing, truncated or altered; nothing is written then.
    """
    source = MODELS[model]
    known = _read_manifest(source)
    wanted = [
        name
        for name in known
        if name.startswith(("pipeline/", *(f"rewards/{r}/" for r in rewards))) or name == "reference.json"
    ]
    for name in tqdm(wanted, desc="verify weights", unit="file"):
        _verify(source / name, known[name])
    for folder in ("pipeline", "rewards"):
        with whole(target / folder) as partial:
            partial.mkdir()
            for name in wanted:
                if name.startswith(folder + "/"):
                    copy = partial / Path(name).relative_to(folder)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source / name, copy)
    reference = json.loads((source / "reference.json").read_text()) if "reference.json" in wanted else {}
    write_json(target / "reference.json", reference)
    write_json(target / MANIFEST, {name: known[name] for name in wanted})


def _read_manifest(source: Path) -> dict[str, str]:
    path = source / MANIFEST
    try:
        known = json.loads(path.read_text())
        if not (isinstance(known, dict) and known and all(isinstance(v, str) for v in known.values())):
            raise ValueError("holds no checksums")
        return known
    except FileNotFoundError:
        raise UserError(f"{path}: not found; restore it with `git checkout {source}`.") from None
    except ValueError as error:  # not JSON, not text, or not what it should hold
        raise UserError(f"{path}: is no manifest ({error}); restore it with `git checkout {source}`.") from None


def _verify(path: Path, expected: str) -> None:
    if not path.is_file():
        raise UserError(f"{path}: this weight file is missing; restore it with `git checkout {path}`.")
    found = sha256(path)
    if found != expected:
        raise UserError(
            f"{path}: this weight file is truncated or altered (SHA-256 {found[:12]}…, expected {expected[:12]}…); "
            f"restore it with `git checkout {path}`."
        )
