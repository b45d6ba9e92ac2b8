"""Finds and loads a reward by its name."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

from music_ddpo.core.errors import UserError, in_one_line
from music_ddpo.rewards.base import Reward
from music_ddpo.rewards.mixture import Mixture
from music_ddpo.weights.manifests import check_files, read_manifest

PACKAGE = "music_ddpo.rewards"


def reward_class(name: str) -> type[Reward]:
    """The class in the module rewards/<name> whose `name` it is; imported only when it is needed."""
    module = importlib.import_module(f"{PACKAGE}.{name}")
    found = [x for x in vars(module).values() if isinstance(x, type) and issubclass(x, Reward)]
    for kind in found:
        if getattr(kind, "name", None) == name:
            return kind
    raise UserError(f"{PACKAGE}.{name}: defines no subclass of Reward with `name = {name!r}`; add it.")


def load_reward(name: str, models: Path, device: torch.device) -> Reward:
    """Loads a reward, a mixture or the held-out judge from `models`.

    Raises
    ------
    UserError
        If its files are missing, altered or do not match each other.
    """
    folder = models / "rewards" / name
    manifest = read_manifest(name, models)
    if "mix" in manifest:
        return Mixture(name, [(load_reward(part, models, device), w) for part, w in manifest["mix"].items()])
    check_files(folder, manifest.get("weights", {}))
    for need, known in manifest.get("needs", {}).items():
        check_files(models / "rewards" / need, known["weights"])
    try:
        return reward_class(name).load(models, device)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{folder}: reward {name!r} could not be loaded ({in_one_line(error)}); a file is missing, truncated or "
            "altered: run `dvc repro -f fetch`."
        ) from error


def check_form(reward: Reward, form: str) -> None:
    """`UserError` if a reward does not support the `reward_form`."""
    if form not in reward.forms:
        raise UserError(
            f"reward_form: reward {reward.name!r} has no {form!r}; set reward_form to {' or '.join(reward.forms)}."
        )
