"""Brings everything that a study needs: the generator, and the weights of every judge, with their checksums."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from music_ddpo.core.files import checksums, digest, remove, whole, write_json
from music_ddpo.core.params import REWARDS, Params
from music_ddpo.rewards.finding import PACKAGE, reward_class
from music_ddpo.weights import shipped
from music_ddpo.weights.manifests import MANIFEST, read_manifest
from music_ddpo.weights.sources import HUB, LICENCES, SHIPPED, TERMS


def fetch(params: Params, target: Path) -> dict[str, str]:
    """Writes pipeline/, rewards/<name>/, manifest.json, reference.json and features.json to `target`.

    Each is written completely or not at all. manifest.json has the checksums of the pipeline, reference.json the scores
    and features.json the features of real recordings, if the model comes with them.

    Returns
    -------
    Where each part comes from: "model", "revision", "license", and one entry for each judge.

    Raises
    ------
    UserError
        If a part is missing, damaged or altered, or cannot be downloaded.
    """
    model = params.model
    source: Path | str = HUB.get(model, model)
    if model not in SHIPPED:
        from music_ddpo.weights import pipelines  # late: it imports diffusers, which takes seconds

        folder = Path(model).expanduser()
        source = folder if folder.is_dir() else source
        pipelines.check(source, params.weights.revision)
    remove(target / "rewards")
    needed = [need for name in params.judges for need in reward_class(name).needs]
    came = {name: fetch_reward(name, target, params) for name in dict.fromkeys([*needed, *params.judges])}
    for name, parts in params.mixtures.items():
        if set(parts) <= set(params.judges):
            write_mixture(name, parts, target)
    reference: dict = {}
    features: dict = {}
    if model in SHIPPED:
        revision = shipped.copy(SHIPPED[model], "pipeline", target / "pipeline")
        reference, features = shipped.read_reference(SHIPPED[model]), shipped.read_features(SHIPPED[model])
    else:
        with whole(target / "pipeline") as partial:
            revision = pipelines.take(source, params.weights.revision, partial)
        model = HUB.get(model, model)
        print("Licence:", TERMS.get(model, f"{model}: see its publication for its terms."))
    write_json(target / "reference.json", reference)
    write_json(target / "features.json", features)
    write_json(target / "manifest.json", checksums(target / "pipeline"))
    return {"model": model, "revision": revision, "license": LICENCES.get(model, "unknown")} | came


def fetch_reward(name: str, models: Path, params: Params) -> str:
    """Brings the weights of a reward to `models`/rewards/<name>, with a manifest; returns where they come from."""
    kind, folder = reward_class(name), models / "rewards" / name
    with whole(folder) as partial:
        partial.mkdir()
        came = kind.fetch(partial, params)
        manifest: dict[str, Any] = {"weights": checksums(partial), "code": code_of(name)}
        shortest = kind.shortest_clip(partial)
        manifest |= {"shortest_clip": shortest} if shortest else {}
        manifest |= {"needs": {need: read_manifest(need, models) for need in kind.needs}} if kind.needs else {}
        write_json(partial / MANIFEST, manifest)
    return came


def write_mixture(name: str, parts: Mapping[str, float], models: Path) -> None:
    """Writes the manifest of a mixture: its weights, and the manifest of each part."""
    manifests = {part: read_manifest(part, models) for part in parts}
    with whole(models / "rewards" / name) as partial:
        partial.mkdir()
        write_json(partial / MANIFEST, {"mix": dict(parts), "parts": manifests})


def code_of(name: str) -> dict[str, str]:
    """SHA-256 of the files in rewards/ that a reward is computed with: its own, and those that they import."""
    own = REWARDS / name
    todo = [p for p in own.rglob("*") if p.is_file() and p.suffix != ".pyc"] if own.is_dir() else []
    todo += [p for p in (REWARDS / f"{name}.py", REWARDS / "__init__.py", REWARDS / "finding.py") if p.is_file()]
    code: dict[str, str] = {}
    while todo:
        path = todo.pop()
        key = path.relative_to(REWARDS).as_posix()
        if key not in code:
            code[key] = digest(path)
            todo += _imports(path) if path.suffix == ".py" else []
    return dict(sorted(code.items()))


def _imports(path: Path) -> list[Path]:
    """The files in rewards/ that a module imports, with the packages that they are in."""
    here = [*PACKAGE.split("."), *path.relative_to(REWARDS).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = [*here[: len(here) - node.level + 1]] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        for parts in (name.split(".")[2:] for name in names if name.startswith(PACKAGE + ".")):
            for i in range(1, len(parts) + 1):
                place = REWARDS / Path(*parts[:i])
                found += [p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()]
    return found
