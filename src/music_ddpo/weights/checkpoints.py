"""Checkpoints that arrive as pickles: checked, read without executing anything, converted to safetensors."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import zipfile
import zlib
from pathlib import Path

import gdown
import numpy as np
import torch
from safetensors.torch import save_file

from music_ddpo.errors import UserError
from music_ddpo.files import remove, whole, write_json
from music_ddpo.params import ClapWeights
from music_ddpo.rewards import emopia, laion
from music_ddpo.weights import hub

EMOPIA_ID = "1L_NOVKCElwcYUEAKp1-FZj_G6Hcq2g2c"  # on Google Drive; linked by the authors' repository EMOPIA_cls
EMOPIA_PART = "wav/ar_va"  # of the authors' folders, that of the audio classifier of four quadrants
EMOPIA_HELP = (
    "get the zip that the authors' repository (github.com/SeungHeonDoh/EMOPIA_cls) links to, and set weights.emopia "
    "to the path of it, or of a folder that holds best.ckpt and hparams.yaml"
)


def read(path: Path, name: str = "") -> dict:
    """The content of a checkpoint that torch has pickled: tensors and plain values, nothing else.

    Parameters
    ----------
    name
        What to call it in an error, if it was unpacked from something.

    Raises
    ------
    UserError
        If it holds anything that would have to be executed (nothing is), or is damaged.
    """
    name = name or str(path)
    scalar = np.core.multiarray.scalar
    allowed = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals([*allowed, np.dtype, np.dtypes.Float64DType]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks for {asked[1]!r}" if asked else "is no plain pickle of tensors"
        raise UserError(
            f"{name}: refused: it {what}, which weights do not need. Nothing in it was executed. Get the file anew "
            "from where its authors publish it."
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name}: is truncated or damaged ({reason}); remove it and run again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{name}: is no checkpoint: it holds a {type(content).__name__}; get the file anew.")
    return content


def state_dict(path: Path, prefix: str, name: str = "") -> dict[str, torch.Tensor]:
    """The weights of a training checkpoint, without the prefix of the wrapper that it was trained in."""
    content = read(path, name)
    states = content.get("state_dict", content)
    return {
        key.removeprefix(prefix): x.contiguous().clone() for key, x in states.items() if isinstance(x, torch.Tensor)
    }


def take_clap(settings: ClapWeights, target: Path) -> str:
    """Puts laion-clap's checkpoint, as safetensors, and the tokenizer of its text tower into `target`.

    Returns
    -------
    Where it came from.

    Raises
    ------
    UserError
        If the checkpoint's SHA-256 is not the known one; it is not read then.
    """
    checkpoint = hub.file(settings.repo, settings.file)
    found = hub.digest(checkpoint)
    if found != settings.sha256:
        raise UserError(
            f"{settings.file}: SHA-256 is {found[:12]}…, weights.clap.sha256 says {settings.sha256[:12]}…; it was not "
            f"read. It is what {settings.repo} holds now: it is for you to decide whether to trust that."
        )
    text = hub.snapshot(settings.text_model, "main", ["config.json", "vocab.json", "merges.txt", "tokenizer*.json"])
    with whole(target) as partial:
        (partial / laion.TEXT).mkdir(parents=True)
        for path in text.iterdir():
            if path.suffix in (".json", ".txt"):
                shutil.copyfile(path, partial / laion.TEXT / path.name)
        states = state_dict(checkpoint, "module.")
        states.pop("text_branch.embeddings.position_ids", None)  # a parameter once, computed today
        save_file(states, partial / laion.WEIGHTS)
        write_json(partial / laion.SETTINGS, {"architecture": settings.architecture})
        _check_loads(laion.LaionClap, partial, checkpoint, "weights.clap.architecture")
    came = f"{settings.repo}@{checkpoint.parent.name}: {settings.file} (SHA-256 {found})"
    return f"{came}, {settings.text_model}@{text.name}"


def take_emopia(place: str, target: Path) -> str:
    """Puts the EMOPIA classifier, as safetensors, into `target`; returns where it came from.

    Parameters
    ----------
    place
        The authors' zip, or a folder that holds what is in it; "auto" downloads it, once.
    """
    path = _download_emopia() if place == "auto" else Path(place).expanduser()
    with whole(target) as partial:
        scratch = partial / "unpacked"
        scratch.mkdir(parents=True)
        folder, name = _emopia_folder(path, scratch)
        states = state_dict(folder / "best.ckpt", "model.", f"{name}/best.ckpt")
        save_file(states, partial / emopia.WEIGHTS)
        shutil.copyfile(folder / emopia.SETTINGS, partial / emopia.SETTINGS)
        found = hub.digest(folder / "best.ckpt")
        remove(scratch)
        _check_loads(emopia.Emopia, partial, path, "weights.emopia")
    return f"{path.name} (best.ckpt SHA-256 {found})"


def _check_loads(kind: type, folder: Path, source: Path, key: str) -> None:
    try:
        kind.load(folder, torch.device("cpu"))
    except Exception as error:  # a UserError too: it names the folder in the making, which will be gone
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{key}: the weights in {source} do not fit their settings ({reason}).") from error


def _download_emopia() -> Path:
    """The authors' zip in the cache; downloaded if it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "music-ddpo"
    path = cache / "EMOPIA_cls.zip"
    if not path.is_file():
        try:
            with whole(path) as partial:
                gdown.download(id=EMOPIA_ID, output=str(partial))
                with zipfile.ZipFile(partial) as archive:
                    damaged = archive.testzip()
                if damaged:
                    raise ValueError(f"{damaged} in it came damaged")
        except UserError:
            raise
        except Exception as error:  # gdown's own, requests', or what a page instead of the file leads to
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"weights.emopia: the download from Google Drive failed ({reason}); {EMOPIA_HELP}."
            ) from error
    return path


def _emopia_folder(path: Path, scratch: Path) -> tuple[Path, str]:
    """The folder that holds best.ckpt and hparams.yaml, unpacked to `scratch` if in a zip, and what to call it."""
    wanted = ("best.ckpt", emopia.SETTINGS)
    if path.is_dir():
        for folder in (path, *sorted(p for p in path.rglob(EMOPIA_PART) if p.is_dir())):
            if all((folder / name).is_file() for name in wanted):
                return folder, str(folder)
    elif path.is_file():
        try:
            with zipfile.ZipFile(path) as archive:
                for name in wanted:
                    inside = [n for n in archive.namelist() if f"/{n}".endswith(f"/{EMOPIA_PART}/{name}")]
                    if inside:
                        with archive.open(inside[0]) as packed, (scratch / name).open("wb") as file:
                            shutil.copyfileobj(packed, file)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"weights.emopia: {path} is no zip, or a damaged one ({error}); {EMOPIA_HELP}.") from None
        if all((scratch / name).is_file() for name in wanted):
            return scratch, f"{path}: {EMOPIA_PART}"
    else:
        raise UserError(f"weights.emopia: {path} is not there; {EMOPIA_HELP}.")
    raise UserError(f"weights.emopia: {path} holds no {EMOPIA_PART}/{wanted[0]} with its {wanted[1]}; {EMOPIA_HELP}.")
