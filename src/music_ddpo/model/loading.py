"""Loads a model of diffusers or transformers: completely, and in float32."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch


def load_model(kind: Any, folder: Path) -> Any:
    """A model of class `kind` from its folder, in float32 whatever its config and its files say.

    The hub's config of CLAP says float64, because that was the dtype of a single scalar when it was saved.

    Raises
    ------
    ValueError
        If weights are missing, unexpected or not finite. The libraries raise their own errors for files that are
        missing, damaged or of another shape.
    """
    _quieten()
    model, report = kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32, output_loading_info=True)
    # Buffers that older versions saved may be unexpected; weights may not.
    wrong = {
        "missing": report["missing_keys"],
        "unexpected": [key for key in report["unexpected_keys"] if key.endswith("weight")],
    }
    for what, keys in wrong.items():
        if keys:
            raise ValueError(f"the weights do not match config.json: {len(keys)} are {what}, for example {min(keys)!r}")
    for key, x in model.state_dict().items():
        if x.is_floating_point() and not all(bound.isfinite() for bound in x.aminmax()):
            raise ValueError(f"{key!r} has values that are not finite")
    return model


def _quieten() -> None:
    """Switches off the libraries' progress bars for loading and their notes on casting."""
    for name in {"diffusers", "transformers"} & sys.modules.keys():  # importing diffusers takes seconds
        logging = import_module(f"{name}.utils.logging")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
