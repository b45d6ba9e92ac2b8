"""Models that are part of the repository: copied from there, verified against their manifest."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from music_ddpo.core.errors import UserError
from music_ddpo.core.files import digest, read_json, verify, whole

MANIFEST = "manifest.json"  # {path: SHA-256}
REFERENCE, FEATURES = "reference.json", "features.json"  # of real recordings


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
        verify(source / name, sha, f"restore it with `git checkout {source / name}`")
    with whole(target) as partial:
        for name in known:
            copied = partial / Path(name).relative_to(part)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, copied)
    return f"manifest {digest(source / MANIFEST)[:12]}"


def read_manifest(source: Path) -> dict[str, str]:
    """SHA-256 of every file of a shipped model, by path in it; `UserError` if it is missing or damaged."""
    path, way_out = source / MANIFEST, f"restore it with `git checkout {source}`"
    known = read_json(path, dict[str, str], ["pipeline/model_index.json"], way_out)
    outside = [name for name in known if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if outside:
        raise UserError(f"{path}: names a file outside its folder ({outside[0]!r}); {way_out}.")
    return known


def read_reference(source: Path) -> dict[str, dict[str, dict[str, float]]]:
    """The scores of real recordings that a shipped model comes with, {judge: {instrument: {emotion: score}}}."""
    return _of_recordings(source, REFERENCE)


def read_features(source: Path) -> dict[str, dict[str, dict[str, float]]]:
    """The features of real recordings that it comes with, {instrument: {emotion: {feature: mean}}}."""
    return _of_recordings(source, FEATURES)


def _of_recordings(source: Path, name: str) -> dict[str, dict[str, dict[str, float]]]:
    path = source / name
    way_out = f"restore it with `git checkout {path}`"
    verify(path, read_manifest(source).get(name, ""), way_out)
    return read_json(path, dict[str, dict[str, dict[str, float]]], way_out=way_out)
