"""Where the weights of each `model` come from."""

from __future__ import annotations

from pathlib import Path

MODELS = {
    "mini": Path("mini/models"),  # shipped with the repository, made by mini/dvc.yaml
}
