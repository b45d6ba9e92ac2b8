"""The embedded models, small params, copies of the project, and commands that run in them."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from music_ddpo.core.params import LoRAParams
from music_ddpo.core.params_file import parse
from music_ddpo.core.prompts import make_prompts
from music_ddpo.core.randomness import random_generator
from music_ddpo.machine.batches import Execution
from music_ddpo.model import adapter
from music_ddpo.model.audioldm2 import Generator
from music_ddpo.model.policy import Policy
from music_ddpo.rewards.emopia import Emopia

PROJECT = Path(__file__).parents[2]
MINI = PROJECT / "mini" / "models"
CPU = torch.device("cpu")

# A study that takes seconds: all the code, no meaningful result.
SMALL = {
    "steps": 4,
    "ddpo.rounds": 2,
    "ddpo.trajectories_per_round": 8,
    "ddpo.updates_per_round": 2,
    "ddpo.timesteps": "all",
    "evaluation.clips_per_emotion": 2,
    "evaluation.bootstrap": 200,
}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
LORA = LoRAParams(rank=4, alpha=4.0, targets="cross")
PROMPT = "A recording of an angry piano solo, high quality"
NEGATIVE = "Low quality, multiple sound sources"


def params_with(**changes: Any) -> dict[str, Any]:
    """The content of the shipped params.yaml, small, with `changes` (double underscores for dots)."""
    content = yaml.safe_load((PROJECT / "params.yaml").read_text())
    for key, value in (SMALL | {k.replace("__", "."): v for k, v in changes.items()}).items():
        *groups, last = key.split(".")
        group = content
        for name in groups:
            group = group[name]
        group[last] = value
    return content


def set_params(folder: Path, **changes: Any) -> None:
    """Writes small params, with `changes`, for the CPU."""
    content = params_with(**{"compute__device": "cpu"} | changes)
    (folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def execution(batch: int = 8, decode_batch: int = 8, dtype: torch.dtype = torch.float32) -> Execution:
    """Fixed batches on the CPU."""
    return Execution(CPU, dtype, batch, decode_batch)


def prompts_of(params) -> list:
    """The training prompts of params."""
    return make_prompts(params.prompts.template, params.prompts.emotions, params.prompts.instruments)


def small(**changes: Any):
    """Small params, typed."""
    return parse(params_with(compute__device="cpu", **changes))


def load_generator(dtype: torch.dtype = torch.float32) -> Generator:
    """The embedded generator, which keeps its text encoders so that it can be used again."""
    generator = Generator.load(MINI / "pipeline", CPU, dtype)
    generator.free_text_encoders = _nothing
    return generator


def mini_emopia() -> Emopia:
    """The embedded classifier, on windows that cover the clip."""
    return Emopia.of_folder(MINI / "rewards" / "emopia", CPU, "cover")


def _nothing() -> None:
    pass


def denoise(
    generator: Generator, prompts: list[str], steps: int = 4, eta: float = 0.0, guidance: float = 3.5,
    duration: float = 5, batch: int = 8, purpose: str = "test",
) -> torch.Tensor:  # fmt: skip
    """x_0 of each prompt, sampled in batches."""
    policy = Policy(generator, prompts, NEGATIVE, steps, duration, guidance, eta)
    noise = [random_generator(0, purpose, 0, i) for i in range(len(prompts))]
    index = torch.arange(len(prompts)).split(batch)
    return torch.cat([policy.sample(part, [noise[i] for i in part]).x[:, -1] for part in index])


def saved_adapter(folder: Path, targets: str = "cross") -> Generator:
    """A generator with an adapter that audibly changes the clips, saved to `folder`."""
    generator = load_generator()
    for i, parameter in enumerate(adapter.add(generator, LORA.model_copy(update={"targets": targets}), 0)):
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=random_generator(0, "adapter", 0, i))
    adapter.save(generator, folder)
    return generator


def python_in(markdown: str) -> str:
    """The only block of Python in it."""
    (lines,) = re.findall(r"```python\n(.*?)```", markdown, re.DOTALL)
    return lines


def run(folder: Path, *command: str, env: dict[str, str] | None = None, **options) -> subprocess.CompletedProcess:
    """Runs a command in a folder with this Python's environment, and `env` on top; returns what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONWARNINGS": "ignore::DeprecationWarning"} | (env or {})
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # DVC must not be confused by what Python writes
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, **options)


def succeed(folder: Path, *command: str, env: dict[str, str] | None = None) -> str:
    """Runs a command that must succeed; its standard output."""
    done = run(folder, *command, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copy_of_project(folder: Path) -> Path:
    """A git repository with the content of a fresh clone of the project, and small params."""
    tracked = run(PROJECT, "git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.split()
    for name in tracked:
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    set_params(folder)
    for command in (
        ["git", "init", "-q"],
        ["git", "config", "user.name", "test"],
        ["git", "config", "user.email", "test@localhost"],
        ["git", "add", "-A"],
        ["git", "commit", "-qm", "copy"],
    ):
        succeed(folder, *command)
    return folder


def copy_for_stages(project: Path, folder: Path) -> Path:
    """A copy of a project without what stages do not need, and without the results of earlier ones."""
    return shutil.copytree(project, folder, ignore=shutil.ignore_patterns("mini", ".git", "clips", "adapters"))


def trained(folder: Path, reward: str = "emopia") -> dict[str, torch.Tensor]:
    """The weights of an adapter."""
    return load_file(folder / "models" / "adapters" / reward / "adapter_model.safetensors")


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two adapters are equal."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> torch.Tensor:
    """How far each weight of one adapter is from that of another."""
    return torch.cat([(a[key] - b[key]).abs().flatten() for key in a])


def leftovers(folder: Path) -> list[Path]:
    """Half-written files and checkpoints."""
    return [*folder.rglob("*.partial"), *(folder / ".checkpoints").glob("*.pt")]


def rounds_done(checkpoint: Path) -> int:
    """How many finished rounds a checkpoint has."""
    if not checkpoint.is_file():
        return 0
    state = torch.load(checkpoint, weights_only=True)["state"]
    return len(torch.load(io.BytesIO(state.numpy().tobytes()), weights_only=True)["rounds"])


def messages(stderr: str) -> list[str]:
    """All lines but progress bars and the lines of finished rounds."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", stderr)]
    return [line for line in lines if line and "%|" not in line and "it/s" not in line and ": reward " not in line]
