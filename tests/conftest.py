"""What several tests share: the embedded models, small params, and a copy of the project to run stages in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parent.parent
MINI = PROJECT / "mini" / "models"

# A study that takes seconds: every code path, no meaning.
SMALL = {
    "steps": 4,
    "ddpo.epochs": 2,
    "ddpo.trajectories_per_epoch": 8,
    "ddpo.updates_per_epoch": 2,
    "ddpo.timesteps": "all",
    "evaluation.clips_per_emotion": 2,
    "evaluation.bootstrap": 200,
}


def params_with(**changes) -> dict:
    """The shipped params.yaml, small, with `changes` (double underscores for dots)."""
    content = yaml.safe_load((PROJECT / "params.yaml").read_text())
    for key, value in (SMALL | {k.replace("__", "."): v for k, v in changes.items()}).items():
        *groups, last = key.split(".")
        group = content
        for name in groups:
            group = group[name]
        group[last] = value
    return content


def run(folder: Path, *command: str, **options) -> subprocess.CompletedProcess:
    """Runs a command in a folder with this Python's environment; returns what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, **options)


def copy_of_project(folder: Path) -> Path:
    """A git repository with what a fresh clone of the project holds, and small params."""
    tracked = run(PROJECT, "git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.split()
    for name in tracked:
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(params_with(), sort_keys=False))
    for command in (
        ["git", "init", "-q"],
        ["git", "config", "user.name", "test"],
        ["git", "config", "user.email", "test@localhost"],
        ["git", "add", "-A"],
        ["git", "commit", "-qm", "copy"],
    ):
        assert run(folder, *command).returncode == 0
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, with its weights fetched and its seed settled, to run stages in."""
    folder = copy_of_project(tmp_path / "project")
    for stage in ("seed", "fetch"):
        done = run(folder, "python", f"stages/{stage}.py")
        assert done.returncode == 0, done.stderr
    return folder
