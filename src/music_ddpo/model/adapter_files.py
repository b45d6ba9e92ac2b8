"""The files of a saved adapter, checked before torch is imported: a PEFT folder with LoRA, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from music_ddpo.core.errors import UserError, in_one_line
from music_ddpo.core.files import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
UNUSED = (
    "alpha_pattern", "corda_config", "eva_config", "exclude_modules", "layer_replication", "layers_pattern",
    "layers_to_transform", "lora_bias", "megatron_config", "modules_to_save", "rank_pattern", "target_parameters",
    "use_dora", "use_rslora",
)  # fmt: skip


def check(folder: Path) -> set[str]:
    """The names of the modules that an adapter changes, from its weights.

    `target_modules` may be a regular expression that takes forever, and is not used.

    Raises
    ------
    UserError
        If a file is missing or damaged, or if it is not plain LoRA.
    """
    if not (folder / CONFIG).exists():
        raise UserError(f"{folder}: contains no adapter (no {CONFIG}); run `dvc repro`, which trains it.")
    path, way_out = folder / WEIGHTS, restore(folder)
    config = read_json(folder / CONFIG, way_out=way_out)
    used = [key for key in UNUSED if config.get(key)]
    if config.get("init_lora_weights", True) is not True:  # others change the weights that the adapter is added to
        used.append("init_lora_weights")
    if config.get("peft_type") != "LORA" or used:
        what = f"uses {used[0]}" if used else f"has the peft_type {str(config.get('peft_type'))[:50]!r}"
        raise UserError(f"{folder / CONFIG}: {what}; only plain LoRA is supported. Use another adapter.")
    if not path.is_file():
        raise UserError(f"{path}: not found, or not a regular file; {way_out}.")
    try:
        with safe_open(path, "np") as file:
            return {_module(file, name, config) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path}: is damaged ({in_one_line(error, 150)}); {way_out}.") from None


def _module(file: Any, name: str, config: dict[str, Any]) -> str:
    """The module that a weight belongs to; `ValueError` if it does not fit the configuration."""
    parts = re.fullmatch(r"base_model\.model\.([\w.]+)\.lora_([AB])\.weight", name)
    if parts is None:
        raise ValueError(f"the weight {name[:100]!r} is not one of LoRA")
    weight = file.get_slice(name)
    shape, kind = weight.get_shape(), weight.get_dtype()
    if kind not in ("F32", "F16", "BF16"):
        raise ValueError(f"{name} has the type {kind}")
    if len(shape) < 2 or shape[0 if parts[2] == "A" else 1] != config.get("r"):
        raise ValueError(f"{name} has the shape {shape}, which does not fit the rank {config.get('r')!r}")
    return parts[1]


def restore(folder: Path) -> str:
    """What to do about a damaged adapter. A file is usually a link to DVC's cache, which would bring it back as it is.

    So the cached copy is removed first; the adapter is then trained again, with the same result.
    """
    files = f"{folder}/adapter_*"
    return (
        f"run `for f in {files}; do find -L .dvc/cache -samefile $f -delete; rm $f; done`, and then `dvc repro`, which "
        "brings it back or trains it again"
    )
