"""What several tests share: the embedded models, small params, and a copy of the project to run stages in."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub import Hub
from huggingface_hub import constants

from music_ddpo.params import WeightParams

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run at a time, and would fight for the cores

PROJECT = Path(__file__).parent.parent
MINI = PROJECT / "mini" / "models"
MUSIC = "cvssp/audioldm2-music"
CHECKPOINT = "music_audioset_epoch_15_esc_90.14.pt"

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

# Three clips a minibatch, which two processes cannot share evenly.
SPLIT = {"ddpo__trajectories_per_epoch": 12, "ddpo__updates_per_epoch": 4, "ddpo__learning_rate": 0.001}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


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


def set_params(folder: Path, **changes) -> None:
    """Writes small params, with `changes`, for the CPU."""
    (folder / "params.yaml").write_text(yaml.safe_dump(params_with(compute__device="cpu", **changes)))


def python_in(markdown: str) -> str:
    """The only block of Python in it."""
    (lines,) = re.findall(r"```python\n(.*?)```", markdown, re.DOTALL)
    return lines


def run(folder: Path, *command: str, env: dict[str, str] | None = None, **options) -> subprocess.CompletedProcess:
    """Runs a command in a folder with this Python's environment, and `env` on top; returns what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONWARNINGS": "ignore::DeprecationWarning"} | (env or {})
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


@pytest.fixture(scope="session")
def fetched(tmp_path_factory) -> Path:
    """A copy of the project, with its weights fetched and its seed settled; read only."""
    folder = copy_of_project(tmp_path_factory.mktemp("fetched") / "project")
    for stage in ("seed", "fetch"):
        done = run(folder, "python", f"stages/{stage}.py")
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def project(fetched: Path, tmp_path: Path) -> Path:
    """The same, to run stages in."""
    return shutil.copytree(fetched, tmp_path / "project")


@pytest.fixture
def stages(fetched: Path, tmp_path: Path) -> Path:
    """The same without what stages do not need, and without results of earlier ones."""
    return bare_copy(fetched, tmp_path / "project")


def bare_copy(project: Path, folder: Path) -> Path:
    return shutil.copytree(project, folder, ignore=shutil.ignore_patterns("mini", ".git", "clips", "plots", "adapters"))


@pytest.fixture(scope="session")
def by_two(fetched: Path, tmp_path_factory) -> Path:
    """A project in which two processes have trained, and what they said in the file `said`; read only."""
    folder = bare_copy(fetched, tmp_path_factory.mktemp("by_two") / "project")
    set_params(folder, **SPLIT, compute__processes=2)
    done = run(folder, "python", "stages/train.py", "emopia", env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    (folder / "said").write_text(done.stderr)
    return folder


@pytest.fixture(scope="session")
def models():
    """The embedded generator and a reward, to be copied."""
    import torch

    from music_ddpo.generator import Generator
    from music_ddpo.rewards.base import load_reward

    return Generator.load(MINI / "pipeline", torch.device("cpu")), load_reward("emopia", MINI, torch.device("cpu"))


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """What is on the stand-in hub, and, beside it, EMOPIA's zip; read only."""
    root = tmp_path_factory.mktemp("published")
    import standins  # late: few tests need it, and it takes a while

    standins.audioldm2(root / "hub" / MUSIC)
    standins.roberta_base(root / "hub" / "FacebookAI" / "roberta-base")
    (root / "hub" / "lukewys" / "laion_clap").mkdir(parents=True)
    standins.laion_checkpoint(
        root / "hub" / "lukewys" / "laion_clap" / CHECKPOINT, root / "hub" / "FacebookAI" / "roberta-base"
    )
    standins.emopia_zip(root / "emopia.zip")
    return root


def weight_settings(root: Path, **changes: str) -> WeightParams:
    """The group `weights` of params.yaml for the stand-ins; `clap__x` changes a key of its group `clap`."""
    checkpoint = root / "hub" / "lukewys" / "laion_clap" / CHECKPOINT
    clap = {
        "repo": "lukewys/laion_clap",
        "file": CHECKPOINT,
        "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "architecture": "HTSAT-tiny",
        "text_model": "FacebookAI/roberta-base",
    }
    content = {"revision": "main", "clap": clap, "emopia": str(root / "emopia.zip")}
    for key, value in changes.items():
        group, _, inner = key.rpartition("__")
        (content[group] if group else content)[inner] = value
    return WeightParams.model_validate(content)


def reach(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Makes this process, too, take `url` for the hub."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def _link_or_copy(source: str, target: str) -> None:
    """Links what is large: the hub remembers its checksum, and 150 MB a test add up."""
    large = Path(source).stat().st_size > 50e6
    (os.symlink if large else shutil.copyfile)(source, target)


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """The stand-in hub, with its own empty cache, serving a copy of what is published that a test may harm."""
    shutil.copytree(published / "hub", tmp_path / "hub", copy_function=_link_or_copy)
    shutil.copyfile(published / "emopia.zip", tmp_path / "emopia.zip")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Hub(tmp_path / "hub") as served:
        reach(monkeypatch, served.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "cache" / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)  # what a broken connection may lose
        yield served
