"""The manifests that `fetch` writes: of the pipeline, and of each reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from typing_extensions import TypedDict

from music_ddpo.core.errors import UserError
from music_ddpo.core.files import read_json, verify

MANIFEST = "manifest.json"
WAY_OUT = "run `dvc repro -f fetch`"


class Needed(TypedDict):
    """The manifest of another reward whose weights are used too."""

    weights: dict[str, str]
    code: dict[str, str]


class Manifest(TypedDict, total=False):
    """Of a reward: the checksums of its weights and its code, the shortest clip, what it needs; or of a mixture."""

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)  # type: ignore[misc]

    weights: dict[str, str]
    code: dict[str, str]
    shortest_clip: float
    needs: dict[str, Needed]
    mix: dict[str, float]
    parts: dict[str, dict[str, Any]]


def read_manifest(name: str, models: Path) -> Manifest:
    """The manifest of a reward: checksums and shortest clip, or the weights of a mixture (`mix`) and its parts."""
    path = models / "rewards" / name / MANIFEST
    manifest: Manifest = read_json(path, Manifest, way_out=WAY_OUT)
    if any("mix" in read_manifest(part, models) for part in manifest.get("mix", {}) if part != name) or (
        name in manifest.get("mix", {})
    ):
        raise UserError(f"{path}: is damaged: a part of the mixture {name!r} is a mixture; {WAY_OUT}.")
    return manifest


def read_pipeline_manifest(models: Path) -> dict[str, str]:
    """SHA-256 of every file in `models`/pipeline, by path in it."""
    return read_json(models / MANIFEST, dict[str, str], ["model_index.json"], WAY_OUT)


def check_pipeline(models: Path, parts: Sequence[str] = ("",)) -> Path:
    """The folder of the pipeline; `UserError` if a file of these parts is not the one that `fetch` has written."""
    known = read_pipeline_manifest(models)
    return check_files(models / "pipeline", {n: sha for n, sha in known.items() if n.startswith(tuple(parts))})


def check_files(folder: Path, known: Mapping[str, str]) -> Path:
    """The folder itself; `UserError` if a file in it is missing or has another SHA-256 than `known` says."""
    for name, sha in known.items():
        verify(folder / name, sha, WAY_OUT)
    return folder


def check_duration(names: Sequence[str], models: Path, duration: float) -> None:
    """`UserError` if clips of `duration` seconds are too short for one of the rewards."""
    for name in names:
        manifest = read_manifest(name, models)
        check_duration(list(manifest.get("mix", {})), models, duration)
        shortest = manifest.get("shortest_clip", 0.0)
        if duration < shortest:
            raise UserError(
                f"duration: {duration:g} s is too short for {name!r}, which listens to windows of {shortest:g} s; set "
                f"duration to {shortest:g} or more."
            )
