"""Checkpoints of a training, so that one that was stopped continues where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

EVERY = 100  # steps


class Checkpoint:
    """What a training needs to continue, in build/checkpoints/<name>.pt.

    Holds the random states and the state of everything in `parts` (modules, optimizers, schedules). If the file is
    there, they are restored from it; `step` is the number of steps that are done.
    """

    def __init__(self, name: str, rng: np.random.Generator, *parts: Any, every: int = EVERY) -> None:
        self.file, self.rng, self.parts, self.every, self.step = (
            Path(f"build/checkpoints/{name}.pt"), rng, parts, every, 0,
        )  # fmt: skip
        if self.file.exists():
            kept = torch.load(self.file, weights_only=False)
            for part, state in zip(parts, kept["parts"], strict=True):
                part.load_state_dict(state)
            rng.bit_generator.state = kept["numpy"]
            torch.set_rng_state(kept["torch"])
            self.step = kept["step"]

    def after(self, step: int) -> bool:
        """Writes the file if step number `step` is one of those that do; says whether it did."""
        if (step + 1) % self.every:
            return False
        self.step = step + 1
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        kept = {
            "parts": [part.state_dict() for part in self.parts],
            "numpy": self.rng.bit_generator.state,
            "torch": torch.get_rng_state(),
            "step": self.step,
        }
        torch.save(kept, partial)
        partial.replace(self.file)
        return True
