"""Brings the weights of a model into models/, verified against their checksums."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from music_ddpo.errors import UserError
from music_ddpo.files import whole, write_json
from music_ddpo.params import WeightParams
from music_ddpo.weights.hub import digest
from music_ddpo.weights.registry import HUB, LICENCES, SHIPPED, TERMS

MANIFEST = "manifest.json"  # {file: SHA-256}


def manifest(folder: Path, parts: Sequence[str] = (".",)) -> dict[str, str]:
    """The SHA-256 of every file below the `parts` of a folder, by path relative to the folder."""
    files = sorted(p for part in parts for p in (folder / part).rglob("*") if p.is_file() and p.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): digest(p) for p in tqdm(files, desc="checksums", unit="file")}


def fetch(model: str, settings: WeightParams, rewards: Sequence[str], target: Path) -> dict[str, str]:
    """Puts the pipeline, the rewards and a manifest of their checksums into `target`.

    Writes `pipeline/`, `rewards/<name>/`, `manifest.json` and `reference.json`: the scores of real recordings, where
    the model comes with them. Each is there whole or not at all.

    Parameters
    ----------
    model
        A known name, a hub id, or a folder in pipeline layout.
    settings
        Where the weights come from that do not ship with the repository.

    Returns
    -------
    Where each part came from: "model", "revision", "license", and one entry a reward.

    Raises
    ------
    UserError
        If a part is missing, damaged or altered, or cannot be brought here.
    """
    if model in SHIPPED:
        return {"model": model, **_copy(SHIPPED[model], rewards, target)}
    folder = Path(model).expanduser()
    return _gather(folder if folder.is_dir() else HUB.get(model, model), settings, rewards, target)


def _gather(model: Path | str, settings: WeightParams, rewards: Sequence[str], target: Path) -> dict[str, str]:
    """Brings each part from where it is published: the smallest first, for what fails should fail soon."""
    from music_ddpo.weights import checkpoints, pipeline  # late: the shipped models need none of their libraries

    terms, came = [], {}
    if "emopia" in rewards:
        came["emopia"] = checkpoints.take_emopia(settings.emopia, target / "rewards" / "emopia")
        terms.append(TERMS["emopia"])
    if "clap" in rewards:
        came["clap"] = checkpoints.take_clap(settings.clap, target / "rewards" / "clap")
        terms.append(TERMS["clap"].format(repo=settings.clap.repo))
    with whole(target / "pipeline") as partial:
        revision = pipeline.take(model, settings.revision, partial)
    terms.insert(0, TERMS.get(str(model), f"{model}: its terms stand where it is published."))
    for line in terms:
        print(f"Licence: {line}")
    write_json(target / "reference.json", {})
    write_json(target / MANIFEST, manifest(target, ("pipeline", *(f"rewards/{r}" for r in rewards))))
    return {"model": str(model), "revision": revision, "license": LICENCES.get(str(model), "unknown"), **came}


def _copy(source: Path, rewards: Sequence[str], target: Path) -> dict[str, str]:
    """Copies models that ship with the repository, with their manifest."""
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
    revision = digest(source / MANIFEST)
    return {"revision": f"manifest {revision[:12]}", "license": "unknown"} | dict.fromkeys(rewards, "beside the model")


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
    found = digest(path)
    if found != expected:
        raise UserError(
            f"{path}: this weight file is truncated or altered (SHA-256 {found[:12]}…, expected {expected[:12]}…); "
            f"restore it with `git checkout {path}`."
        )
