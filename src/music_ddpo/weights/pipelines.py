"""Brings a generator from the hub or from a folder into a form that stock diffusers loads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tqdm import tqdm

from music_ddpo.core.errors import UserError, in_one_line
from music_ddpo.core.files import write_json
from music_ddpo.model.loading import load_model
from music_ddpo.model.parts import MODELS
from music_ddpo.weights import hub

INDEX = "model_index.json"
OTHERS = ("feature_extractor", "scheduler", "tokenizer", "tokenizer_2")
SMALL = ("json", "txt", "model")  # configs and tokenizers
VARIANTS = ("*.fp16[.-]*", "*.bf16[.-]*", "*.non_ema[.-]*")


def take(model: Path | str, revision: str, target: Path) -> str:
    """Puts the pipeline of a hub id or a folder into `target`, which must not exist; returns its revision.

    Other weight formats are converted to safetensors, and each config of transformers is made to say float32, because
    stock libraries load what it says. Every part is loaded once, so that weights that do not match are found here and
    not in a later stage.

    Returns
    -------
    The commit on the hub, or "local" for a folder.

    Raises
    ------
    UserError
        If something is missing, damaged, does not match its config, or is a pickle that contains more than weights.
    """
    source, found = (model, "local") if isinstance(model, Path) else _download(model, revision)
    index = _read_index(source, str(model))
    target.mkdir(parents=True)
    for name in OTHERS:
        _require(source / name, str(model))
        _copy_small(source / name, target / name)
    for name, kind in tqdm(MODELS.items(), desc="check weights", unit="model"):
        _require(source / name, str(model))
        _take_model(source / name, target / name, kind)
    index["language_model"] = ["transformers", "GPT2LMHeadModel"]
    write_json(target / INDEX, index)
    return found


def check(model: Path | str, revision: str) -> None:
    """`UserError` if a hub id or a folder is not AudioLDM 2, before anything but its index is downloaded."""
    source = model if isinstance(model, Path) else hub.snapshot(model, revision, [INDEX])
    _read_index(source, str(model))


def _download(repo: str, revision: str) -> tuple[Path, str]:
    parts = (*MODELS, *OTHERS)
    patterns = [INDEX, *(f"{part}/*.{end}" for part in parts for end in (*SMALL, "safetensors"))]
    folder = hub.snapshot(repo, revision, patterns, VARIANTS)
    if (folder / INDEX).is_file():
        old = [name for name in MODELS if not list((folder / name).glob("*.safetensors"))]
        if old:  # saved before safetensors
            hub.snapshot(repo, folder.name, [f"{name}/*.bin" for name in old], VARIANTS)
    return folder, folder.name


def _read_index(source: Path, model: str) -> dict:
    path = source / INDEX
    if not path.is_file():
        raise UserError(f"model: {model!r} is not a pipeline: it has no {INDEX}; use an AudioLDM 2 pipeline.")
    try:
        index = json.loads(path.read_text())
        missing = sorted({*MODELS, *OTHERS} - set(index))
    except (ValueError, TypeError):
        raise UserError(f"{path}: is damaged: it is not JSON; download it again.") from None
    if missing:
        raise UserError(f"model: {model!r} is not AudioLDM 2: {path} has no {missing[0]}; use an AudioLDM 2 pipeline.")
    return index


def _require(folder: Path, model: str) -> None:
    if not folder.is_dir():
        raise UserError(f"model: {model!r} has no folder {folder.name!r}; it is incomplete, download it again.")


def _copy_small(source: Path, target: Path) -> None:
    target.mkdir()
    for path in source.iterdir():
        if path.suffix[1:] in SMALL and not path.name.endswith(".bin.index.json"):
            shutil.copyfile(path, target / path.name)


def _take_model(source: Path, target: Path, kind: Any) -> None:
    weights = [p for p in source.glob("*.safetensors") if not any(p.match(v) for v in VARIANTS)]
    try:
        model = load_model(kind, source)
    except Exception as error:  # safetensors, pickle, transformers and diffusers each raise their own
        raise UserError(
            f"{source}: {kind.__name__} could not be loaded ({in_one_line(error)}); the weights are missing, damaged, "
            "do not match config.json, or contain more than weights; nothing in them was executed. Download them again."
        ) from error
    if not weights:
        model.save_pretrained(target)
        return
    _copy_small(source, target)
    for path in weights:
        _link(path.resolve(), target / path.name)
    config = json.loads((target / "config.json").read_text())
    if "model_type" in config:  # of transformers, which takes the type of the weights from it
        config.pop("dtype", None)
        write_json(target / "config.json", config | {"torch_dtype": "float32"})


def _link(source: Path, target: Path) -> None:
    """Links a file, or copies it if the file system has no links. The files are never changed here."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
