"""The authors' EMOPIA checkpoint: downloaded or given, then converted to safetensors."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import gdown
from safetensors.torch import save_file

from music_ddpo.core.errors import UserError, in_one_line
from music_ddpo.core.files import digest, whole
from music_ddpo.rewards.emopia.network import PART, SETTINGS, WEIGHTS
from music_ddpo.weights.checkpoints import state_dict

DRIVE_ID = "1L_NOVKCElwcYUEAKp1-FZj_G6Hcq2g2c"  # on Google Drive; linked by the authors' repository EMOPIA_cls
PLACES = (PART, f"best_weight/{PART}", f"*/best_weight/{PART}")  # in a folder that the user names
CHECKPOINT = "best.ckpt"
LARGEST = {CHECKPOINT: 1_000_000_000, SETTINGS: 1_000_000}  # bytes; the authors' have 50 million and one thousand
HELP = (
    "get the zip that the authors' repository (github.com/SeungHeonDoh/EMOPIA_cls) links to, or the folder "
    "ddpo-pytorch/ddpo_pytorch/emo_weight/ar_va of github.com/Cyan0731/rl_final, and set weights.emopia to the path of "
    "the zip, or of a folder with best.ckpt and hparams.yaml"
)
TERMS = "Licence: EMOPIA classifier: made from the EMOPIA dataset, CC BY-NC-SA 4.0, non-commercial use only."


def fetch(place: str, target: Path) -> str:
    """Writes the EMOPIA classifier, as safetensors, to the folder `target`; returns where it comes from.

    Parameters
    ----------
    place
        The authors' zip, or a folder with its content; "auto" downloads the zip once.
    """
    path = _download() if place == "auto" else Path(place).expanduser()
    with tempfile.TemporaryDirectory() as scratch:
        folder, name = _find(path, Path(scratch))
        states = state_dict(folder / CHECKPOINT, "model.", f"{name}/{CHECKPOINT}", HELP)
        found = digest(folder / CHECKPOINT)
        save_file(states, target / WEIGHTS)
        shutil.copyfile(folder / SETTINGS, target / SETTINGS)
    print(TERMS)
    return f"{path.name} ({CHECKPOINT} SHA-256 {found})"


def _download() -> Path:
    """The authors' zip in the cache; downloaded if it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "music-ddpo"
    path = cache / "EMOPIA_cls.zip"
    if not path.is_file():
        try:
            with whole(path) as partial:
                gdown.download(id=DRIVE_ID, output=str(partial))
                with zipfile.ZipFile(partial) as archive:
                    damaged = archive.testzip()
                if damaged:
                    raise ValueError(f"{damaged} in it is damaged")
        except UserError:
            raise
        except Exception as error:  # of gdown, of requests, or of a web page in place of the file
            raise UserError(
                f"weights.emopia: the download from Google Drive failed ({in_one_line(error, 200)}); {HELP}."
            ) from error
    return path


def _find(path: Path, scratch: Path) -> tuple[Path, str]:
    """The folder with best.ckpt and hparams.yaml, unpacked to `scratch` if they are in a zip, and its name."""
    wanted = tuple(LARGEST)
    if path.is_dir():
        for folder in (path, *(folder for place in PLACES for folder in sorted(path.glob(place)))):
            if all((folder / name).is_file() for name in wanted):
                for name in wanted:
                    _check_size(folder / name, name, (folder / name).stat().st_size)
                return folder, str(folder)
    elif path.is_file():
        try:
            with zipfile.ZipFile(path) as archive:
                for name in wanted:
                    inside = [n for n in archive.namelist() if f"/{n}".endswith(f"/{PART}/{name}")]
                    if inside:
                        _check_size(path, inside[0], archive.getinfo(inside[0]).file_size)
                        with archive.open(inside[0]) as packed, (scratch / name).open("wb") as file:
                            shutil.copyfileobj(packed, file)
        except UserError:
            raise
        except Exception as error:  # a damaged zip can raise anything
            raise UserError(
                f"weights.emopia: {path} is not a zip, or a damaged one ({in_one_line(error, 100)}); {HELP}."
            ) from None
        if all((scratch / name).is_file() for name in wanted):
            return scratch, f"{path}: {PART}"
    else:
        raise UserError(f"weights.emopia: {path} does not exist; {HELP}.")
    raise UserError(f"weights.emopia: {path} has no {PART}/{wanted[0]} with its {wanted[1]}; {HELP}.")


def _check_size(path: Path, name: str, size: int) -> None:
    """`UserError` for a file, or a member of a zip, that is larger than any checkpoint or settings of this kind."""
    most = LARGEST[Path(name).name]
    if size > most:
        raise UserError(
            f"weights.emopia: {path}: {name} has {size / 1e6:.0f} MB, more than {most / 1e6:g} MB, which is not the "
            f"authors' file; {HELP}."
        )
