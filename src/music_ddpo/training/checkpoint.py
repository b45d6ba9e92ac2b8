"""The state of a training between two rounds, and the files that hold it."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from music_ddpo.core.errors import UserError, in_one_line
from music_ddpo.core.files import checksums, whole, write_text
from music_ddpo.core.params import Params
from music_ddpo.machine import processes
from music_ddpo.training.progress import Progress
from music_ddpo.training.record import Round, reward_curve

PACKAGE = Path(__file__).parents[1]


class Run:
    """A training: adapter, optimizer, reward history, and the rounds so far.

    Parameters
    ----------
    parameters
        Of the adapter.
    optimizer
        Over them.
    identity
        Everything that the result depends on, as plain values by key. A checkpoint is used only if its identity is the
        same; otherwise it is kept beside the new one, and a warning says which key differs.
    checkpoint, curve
        The files that are written after every round. Process 0 writes them.

    Attributes
    ----------
    history
        The latest rewards of each prompt, by its index.
    rounds
        The record of each finished round.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        identity: dict[str, Any],
        checkpoint: Path,
        curve: Path,
        progress: Progress,
    ):
        self.parameters = parameters
        self.optimizer = optimizer
        self.identity = identity
        self.checkpoint = checkpoint
        self.curve = curve
        self.progress = progress
        self.history: dict[int, list[float]] = {}
        self.rounds: list[Round] = []
        saved = processes.broadcast(read(checkpoint, identity) if processes.is_main() else None)
        if saved is not None:
            self._restore(saved)

    @property
    def rounds_done(self) -> int:
        """How many rounds are finished."""
        return len(self.rounds)

    def finish(self, round: Round) -> None:
        """Records a finished round and writes checkpoint and reward curve, each completely or not at all."""
        self.rounds.append(round)
        if processes.is_main():
            self.write()
            write_text(self.curve, reward_curve(self.rounds).to_csv(index=False))
        self.progress.finished(round)

    def write(self) -> None:
        """Writes the checkpoint: the state, with its checksum."""
        state = io.BytesIO()
        torch.save(self._state(), state)
        content = torch.frombuffer(state.getbuffer(), dtype=torch.uint8)
        with whole(self.checkpoint) as partial:
            torch.save({"identity": self.identity, "sha256": _digest(content), "state": content}, partial)

    def _state(self) -> dict[str, Any]:
        return {
            "parameters": [p.detach().cpu() for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "rounds": [asdict(r) for r in self.rounds],
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, saved["parameters"], strict=True):
                parameter.copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.history = saved["history"]
        self.rounds = [Round(**r) for r in saved["rounds"]]
        if processes.is_main():
            write_text(self.curve, reward_curve(self.rounds).to_csv(index=False))


def identity_of(params: Params, reward: str, seed: int, precision: torch.dtype, weights: dict[str, Any]) -> dict:
    """Everything that the adapter depends on: not the batches and the number of processes, which change only rounding.

    Parameters
    ----------
    weights
        Checksums of the files of the model and the reward.
    """
    keys = ("model", "duration", "steps", "guidance_scale", "prompts", "reward_form", "ddpo", "lora")
    content = {key: value for key, value in params.model_dump(mode="json").items() if key in keys}
    other = {"reward": reward, "seed": seed, "compute.precision": str(precision), "torch": str(torch.__version__)}
    code = {name: checksums(PACKAGE / name, "*.py") for name in ("core", "model", "training")}
    return _flat(content | other | {"weights": weights, "code": code})


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def read(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The state in a checkpoint; None if there is none, or one that cannot be used, which is then set aside."""
    if not path.exists():
        return None
    try:
        if not path.is_file():
            raise ValueError("it is not a regular file")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict):
            raise ValueError(f"it contains a {type(saved).__name__}")
        found, state = dict(saved["identity"]), saved["state"]
        if _digest(state) != saved["sha256"]:
            raise ValueError("its checksum is wrong")
        differ = [key for key in sorted({*identity, *found}) if found.get(key) != identity.get(key)]
        if not differ:
            return torch.load(io.BytesIO(state.numpy().tobytes()), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged, or something else
        _set_aside(path, f"it is not a readable checkpoint ({in_one_line(error, 100)})")
        return None
    key = differ[0]
    _set_aside(path, f"it belongs to a training with another {key} ({found.get(key)!r}, now {identity.get(key)!r})")
    return None


def _digest(content: torch.Tensor) -> str:
    return hashlib.sha256(content.numpy().tobytes()).hexdigest()


@contextmanager
def alone(checkpoint: Path, reward: str) -> Iterator[None]:
    """Inside it, no other training writes this checkpoint. The lock ends with this process, however it ends.

    Raises
    ------
    UserError
        If another process has the lock, for example because only `dvc` was killed and its stage still runs.
    """
    path = checkpoint.with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{path}: another training with {reward!r} runs in this folder, process {file.read(20).strip()}; wait "
                "until it has finished, or end it, and run again: finished rounds are kept."
            ) from None
        except OSError as error:
            warnings.warn(
                f"{path}: this file system has no locks ({error.strerror}); run one training here at a time.",
                stacklevel=2,
            )
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _set_aside(path: Path, reason: str) -> None:
    """Renames a checkpoint that cannot be used, and says so."""
    number = 1
    while (kept := path.with_name(f"{path.stem}.old-{number}{path.suffix}")).exists():
        number += 1
    path.rename(kept)
    warnings.warn(f"{path} is not used: {reason}. It is kept as {kept}; training starts at round 1.", stacklevel=2)
