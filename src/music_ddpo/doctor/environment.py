"""Versions, device, disk, and what is fetched."""

from __future__ import annotations

import configparser
import os
import platform
import re
import shutil
from importlib import metadata
from pathlib import Path

import psutil
import torch

from music_ddpo.core.files import checksums, read_json
from music_ddpo.core.params import SHIPPED, Params
from music_ddpo.doctor.report import BROKEN, LOOK, OK, Check, Row
from music_ddpo.machine.batches import Execution, choose, total_memory
from music_ddpo.rewards.fetching import code_of
from music_ddpo.weights.manifests import MANIFEST, check_duration, read_manifest
from music_ddpo.weights.sources import HUB

PACKAGES = ("music-ddpo", "torch", "diffusers", "transformers", "peft", "laion-clap", "numpy", "dvc")
REQUIREMENTS = Path(__file__).parents[3] / "requirements.txt"
FETCH = "run `dvc repro fetch`"
AGAIN = "run `dvc repro -f fetch`"


def versions(requirements: Path = REQUIREMENTS) -> Check[None]:
    """Versions of Python and of the packages that results depend on, against those that are tested."""
    tested = dict(re.findall(r"^([\w-]+)==([\w.]+)", requirements.read_text() if requirements.is_file() else "", re.M))
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    told = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    text = f"python {platform.python_version()}, {told}"
    differ = [name for name, version in found.items() if version and version.split("+")[0] != tested.get(name, version)]
    install = f"run `pip install -r {requirements.name}`"
    if None in found.values():
        yield Row("versions", BROKEN, text, install)
    elif differ:
        names = ", ".join(f"{name} {tested[name]}" for name in differ)
        yield Row("versions", LOOK, text, f"tested with {names}; {install} if something below fails")
    else:
        yield Row("versions", OK, text)


def device(params: Params) -> Check[Execution]:
    """The device and its memory."""
    execution = choose(params.compute)
    kind, total = execution.device.type, total_memory(execution.device)
    if kind == "cuda":
        free = torch.cuda.mem_get_info(execution.device)[0]
        name = torch.cuda.get_device_name(execution.device)
    else:
        free = min(total, psutil.virtual_memory().available)
        name = f"{os.cpu_count()} cores, of which torch uses {torch.get_num_threads()}"
    text = f"{execution.device}: {name}, {total / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB free; " + str(
        execution.dtype
    ).removeprefix("torch.")
    numbers: dict[str, float | None] = {"memory_bytes": total, "free_bytes": free}
    if kind == "cpu" and params.model not in SHIPPED:
        advice = f"{params.model} is slow without a GPU; the estimate below says how slow"
        yield Row("device", LOOK, text, advice, numbers)
    else:
        yield Row("device", OK, text, numbers=numbers)
    return execution


def free_disk() -> dict[Path, int]:
    """Bytes free where models and clips are written, and where DVC keeps its cache."""
    places = [Path.cwd(), (Path(".dvc") / _dvc_config().get("cache", "dir", fallback="cache")).resolve()]
    return {place: shutil.disk_usage(_existing(place)).free for place in dict.fromkeys(places)}


def disk() -> Check[None]:
    """The free space; the estimate says whether it is enough."""
    free = free_disk()
    text = ", ".join(f"{size / 1e9:.1f} GB free in {place}" for place, size in free.items())
    links = "links files to it" if cache_links() else "copies files to it: they take their space twice"
    yield Row("disk", OK, f"{text}; DVC {links}", numbers={"free_bytes": min(free.values())})


def cache_links() -> bool:
    """Whether a file in the workspace and its copy in DVC's cache share their space."""
    kinds = _dvc_config().get("cache", "type", fallback="reflink,copy")
    return bool({"hardlink", "symlink"} & {kind.strip(' "') for kind in kinds.split(",")})


def fetched(params: Params, models: Path) -> Check[list[str]]:
    """What `fetch` has brought, and its checksums; returns the judges that can be loaded."""
    yield _pipeline(params, models)
    usable = []
    for name in params.judges:
        folder = models / "rewards" / name
        if not (folder / MANIFEST).is_file():
            yield Row(f"weights {name}", BROKEN, f"{folder} is not fetched", FETCH)
            continue
        manifest = read_manifest(name, models)
        differ = _differ(manifest.get("weights", {}), folder)
        if differ:
            yield Row(f"weights {name}", BROKEN, differ, AGAIN)
            continue
        usable.append(name)
        if manifest.get("code") != code_of(name):
            yield Row(f"weights {name}", LOOK, "the code of this judge has changed since it was fetched", FETCH)
        else:
            own = f"{_size(folder)}, checksums hold" if manifest.get("weights") else "no weights of its own"
            yield Row(f"weights {name}", OK, own)
    check_duration(usable, models, params.duration)
    return usable


def _pipeline(params: Params, models: Path) -> Row:
    manifest = models / "manifest.json"
    if not manifest.is_file():
        need = "" if params.model in SHIPPED else "; a real model takes about 10 GB on disk, with the download"
        return Row("weights of model", BROKEN, f"{params.model} is not fetched", FETCH + need)
    differ = _differ(read_json(manifest), models / "pipeline")
    if differ:
        return Row("weights of model", BROKEN, differ, AGAIN)
    text = f"{_size(models / 'pipeline')}, checksums hold"
    wanted, came = HUB.get(params.model, params.model), _came(models)
    if came not in (None, wanted):
        return Row("weights of model", BROKEN, f"{came} is fetched, and params.yaml says {params.model}", FETCH)
    return Row("weights of model", OK, f"{wanted}: {text}")


def _came(models: Path) -> str | None:
    """The model that was fetched, if known."""
    path = models.parent / "metrics" / "weights.json"
    return read_json(path).get("model") if path.is_file() else None


def _differ(manifest: dict[str, str], folder: Path) -> str:
    """The first file that is missing or has other content than the manifest says, or ""."""
    found = checksums(folder)
    found.pop(MANIFEST, None)
    for name, expected in manifest.items():
        if name not in found:
            return f"{folder / name} is missing"
        if found[name] != expected:
            return f"{folder / name} is altered or truncated: its checksum differs from the manifest's"
    extra = sorted(set(found) - set(manifest))
    return f"{folder / extra[0]} is not in the manifest" if extra else ""


def bytes_in(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _size(folder: Path) -> str:
    return f"{bytes_in(folder) / 1e6:.1f} MB"


def _existing(place: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(p for p in (place, *place.parents) if p.is_dir())


def _dvc_config() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read([".dvc/config", ".dvc/config.local"])
    return config
