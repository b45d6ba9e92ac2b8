"""Fixtures that several tests share."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from helpers.hub import Hub, reach
from helpers.project import (
    copy_for_stages,
    copy_of_project,
    load_generator,
    mini_emopia,
    set_params,
    succeed,
)

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run at a time, and would compete for the cores


# The files that take longest. They begin, so that all workers end at about the same time (--no-loadscope-reorder).
LONGEST = ["test_pipeline", "test_real_layout", "test_processes", "test_full_size", "test_training"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders the files."""
    items.sort(key=lambda item: ([*LONGEST, item.path.stem]).index(item.path.stem))


@pytest.fixture(scope="session")
def fetched(tmp_path_factory) -> Path:
    """A copy of the project, with its weights fetched and its seed settled; read only."""
    folder = copy_of_project(tmp_path_factory.mktemp("fetched") / "project")
    for stage in ("seed", "fetch"):
        succeed(folder, "python", f"stages/{stage}.py")
    return folder


@pytest.fixture
def stages(fetched: Path, tmp_path: Path) -> Path:
    """A copy of it to run stages in."""
    folder = copy_for_stages(fetched, tmp_path / "project")
    set_params(folder)
    return folder


@pytest.fixture(scope="session")
def models():
    """The embedded generator and the EMOPIA reward, to be copied."""
    return load_generator(), mini_emopia()


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Path:
    """What is on the stand-in hub, and, beside it, EMOPIA's zip; read only."""
    from helpers import standins  # late: few tests need it, and it takes a while

    root = tmp_path_factory.mktemp("published")
    standins.publish(root)
    return root


def _link_or_copy(source: str, target: str) -> None:
    """Links large files: the hub remembers their checksums, and 150 MB for each test add up."""
    large = Path(source).stat().st_size > 50e6
    (os.symlink if large else shutil.copyfile)(source, target)


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """The stand-in hub with its own empty cache; it serves a copy of what is published, which a test may damage."""
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
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)  # how much a dropped connection may lose
        yield served
