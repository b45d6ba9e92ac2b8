"""Models that are part of the repository: copied from there, verified against their manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tqdm import tqdm

from music_ddpo.core.errors import UserError
from music_ddpo.core.files import digest, whole

MANIFEST, REFERENCE = "manifest.json", "reference.json"  # the manifest is {path: SHA-256}


def copy(source: Path, part: str, target: Path) -> str:
    """Copies the folder `part` of a shipped model to `target`; returns the revision of the model.

    Raises
    ------
    UserError
        If a file is missing or differs from the manifest. Nothing is written then.
    """
    known = {name: sha for name, sha in read_manifest(source).items() if name.startswith(part + "/")}
    if not known:
        raise UserError(f"{source / MANIFEST}: lists no files in {part}/, so the shipped model does not have it.")
    for name, sha in tqdm(known.items(), desc=f"verify {part}", unit="file"):
        _verify(source / name, sha)
    with whole(target) as partial:
        for name in known:
            copied = partial / Path(name).relative_to(part)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, copied)
    return f"manifest {digest(source / MANIFEST)[:12]}"


def read_manifest(source: Path) -> dict[str, str]:
    """SHA-256 of every file of a shipped model, by path; `UserError` if it is missing or damaged."""
    path = source / MANIFEST
    try:
        known = json.loads(path.read_text())
        if not (isinstance(known, dict) and known and all(isinstance(v, str) for v in known.values())):
            raise ValueError("contains no checksums")
        return known
    except FileNotFoundError:
        raise UserError(f"{path}: not found; restore it with `git checkout {source}`.") from None
    except ValueError as error:  # neither JSON nor text, or other content
        raise UserError(f"{path}: is not a manifest ({error}); restore it with `git checkout {source}`.") from None


def read_reference(source: Path) -> dict:
    """The scores of real recordings that a shipped model comes with, {judge: {instrument: {emotion: score}}}."""
    path = source / REFERENCE
    _verify(path, read_manifest(source).get(REFERENCE, ""))
    return json.loads(path.read_text())


def _verify(path: Path, expected: str) -> None:
    if not path.is_file():
        raise UserError(f"{path}: this weight file is missing; restore it with `git checkout {path}`.")
    found = digest(path)
    if found != expected:
        raise UserError(
            f"{path}: this weight file is truncated or altered (SHA-256 {found[:12]}…, expected {expected[:12]}…); "
            f"restore it with `git checkout {path}`."
        )
