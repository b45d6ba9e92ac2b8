"""The manifest that `fetch` writes into the folder of each reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from music_ddpo.core.errors import UserError
from music_ddpo.core.files import read_json

MANIFEST = "manifest.json"


def read_manifest(name: str, models: Path) -> dict[str, Any]:
    """The manifest of a reward: checksums and shortest clip, or the weights of a mixture (`mix`) and its parts."""
    return read_json(models / "rewards" / name / MANIFEST)


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
