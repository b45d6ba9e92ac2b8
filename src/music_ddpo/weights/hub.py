"""Downloads from the Hugging Face hub: into its own cache, checked, and with errors that say what to do."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm

from music_ddpo.errors import UserError
from music_ddpo.files import REASONS
from music_ddpo.weights.registry import KNOWN, nearest

# The library's plain HTTP downloads, whose failures are known and tried here, rather than those of its Xet extension.
constants.HF_HUB_DISABLE_XET = True

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may read it, and run again"


def snapshot(repo: str, revision: str, patterns: Sequence[str], ignore: Sequence[str] = ()) -> Path:
    """The folder in the hub's cache that holds the files of `repo` which match `patterns`; its name is the commit.

    What the cache has is not downloaded again; where a connection drops, the library takes it up where it broke.
    """
    with _explained(repo, revision):
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, ignore_patterns=ignore))
    for path in tqdm([p for p in folder.rglob("*") if p.is_file()], desc=f"verify {repo}", unit="file"):
        check(path, repo)
    return folder


def file(repo: str, name: str) -> Path:
    """One file of `repo`, in the hub's cache; the folder that it lies in is named after the commit."""
    with _explained(repo, "main", name):
        path = Path(hf_hub_download(repo, name))
    check(path, repo)
    return path


def check(path: Path, repo: str) -> None:
    """`UserError` if a file in the cache is not what the hub says: it links to a blob that is named by its hash."""
    if not path.is_symlink():  # a file system without links: the cache holds the file itself, under its own name
        return
    expected = Path(os.readlink(path)).name
    if re.fullmatch("[0-9a-f]{64}", expected):
        found = digest(path)
    elif re.fullmatch("[0-9a-f]{40}", expected):
        header = b"blob %d\0" % path.stat().st_size
        found = digest(path, lambda: hashlib.sha1(header))  # as git names it
    else:
        return
    if found != expected:
        (path.parent / os.readlink(path)).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise UserError(
            f"{repo}: {path.name} came damaged (hash {found[:12]}…, the hub says {expected[:12]}…) and was removed "
            "from the cache; run again to download it anew."
        )


def digest(path: Path, start: Callable = hashlib.sha256) -> str:
    """The hex digest of a file's content, by the hash that `start` begins."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, start).hexdigest()


@contextmanager
def _explained(repo: str, revision: str, name: str = "") -> Iterator[None]:
    """Turns what the hub's library raises into a `UserError`."""
    try:
        yield
    except GatedRepoError:
        url = f"{constants.ENDPOINT}/{repo}"
        raise UserError(f"{repo}: its owners want their terms accepted; do so at {url}, then {LOG_IN}.") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{repo}: the hub has no such repository, or it is private{nearest(repo, KNOWN)}; "
            f"mend the name in params.yaml, or {LOG_IN}."
        ) from None
    except HFValidationError as error:
        raise UserError(
            f"{repo!r} is neither a folder that is there nor a hub id ({error}); mend params.yaml."
        ) from None
    except RevisionNotFoundError:
        raise UserError(
            f"weights.revision: {repo} has no revision {revision!r}; give a branch, a tag or a full commit hash."
        ) from None
    except LocalEntryNotFoundError as error:
        raise UserError(_unreachable(repo, error)) from None
    except EntryNotFoundError:
        raise UserError(f"{repo}: holds no file {name!r}; mend weights in params.yaml.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(
                f"{repo}: the hub refuses the token that was sent, or wants one (status {status}); {LOG_IN}."
            ) from None
        raise UserError(_unreachable(repo, error)) from None
    except HTTPError as error:
        raise UserError(_unreachable(repo, error)) from None
    except OSError as error:
        if error.errno in REASONS:
            raise UserError(
                f"{constants.HF_HUB_CACHE}: {repo} could not be written there: {REASONS[error.errno]}, "
                "or set HF_HOME to another place."
            ) from None
        if error.errno is not None and error.errno != errno.EIO:
            raise
        raise UserError(_unreachable(repo, error)) from None


def _unreachable(repo: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return (
        f"{repo}: could not be downloaded from {constants.ENDPOINT} ({reason}); check the network and run again: "
        "the files that have arrived are kept."
    )
