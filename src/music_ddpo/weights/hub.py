"""Downloads from the Hugging Face hub: into its own cache, verified, with errors that say what to do."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

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

from music_ddpo.core.errors import UserError, did_you_mean, in_one_line
from music_ddpo.core.files import REASONS, digest
from music_ddpo.weights.sources import KNOWN

# Plain HTTP downloads, whose failures the tests cover, instead of the library's Xet extension.
constants.HF_HUB_DISABLE_XET = True

# The library logs URLs, and the one in HF_ENDPOINT may contain a password.
logging.getLogger("huggingface_hub.utils._http").addFilter(lambda record: _without_password(record))

LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with read access, and run again"


def snapshot(repo: str, revision: str, patterns: Sequence[str], ignore: Sequence[str] = ()) -> Path:
    """The folder in the hub's cache with the files of `repo` that match `patterns`; its name is the commit.

    Files in the cache are not downloaded again; after a dropped connection the library resumes the download.
    """
    with _explained(repo, revision):
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, ignore_patterns=ignore))
    for path in tqdm([p for p in folder.rglob("*") if p.is_file()], desc=f"verify {repo}", unit="file"):
        check(path, repo)
    return folder


def file(repo: str, name: str) -> Path:
    """One file of `repo` in the hub's cache; the name of its folder is the commit."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise UserError(f"{repo}: {name!r} is not the path of a file in it; correct `weights` in params.yaml.")
    with _explained(repo, "main", name):
        path = Path(hf_hub_download(repo, name))
    check(path, repo)
    return path


def check(path: Path, repo: str) -> None:
    """`UserError` if a cached file is damaged. It is a link to a blob whose name is its hash."""
    if not path.is_symlink():  # a file system without links: the cache has the file itself, under its own name
        return
    expected = Path(os.readlink(path)).name
    if re.fullmatch("[0-9a-f]{64}", expected):
        found = digest(path)
    elif re.fullmatch("[0-9a-f]{40}", expected):
        header = b"blob %d\0" % path.stat().st_size
        found = digest(path, lambda: hashlib.sha1(header))  # git's object id
    else:
        return
    if found != expected:
        (path.parent / os.readlink(path)).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise UserError(
            f"{repo}: {path.name} is damaged (hash {found[:12]}…, expected {expected[:12]}…) and was removed "
            "from the cache; run again to download it."
        )


@contextmanager
def _explained(repo: str, revision: str, name: str = "") -> Iterator[None]:
    """Turns what the hub's library raises into a `UserError`."""
    try:
        yield
    except GatedRepoError:
        url = _shown(f"{constants.ENDPOINT}/{repo}")
        raise UserError(
            f"{repo}: its owners require that you accept their terms; do so at {url}, then {LOG_IN}."
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{repo}: the hub has no such repository, or it is private{did_you_mean(repo, KNOWN)}; "
            f"correct the name in params.yaml, or {LOG_IN}."
        ) from None
    except HFValidationError as error:
        raise UserError(
            f"{repo!r} is neither an existing folder nor a hub id ({error}); correct params.yaml."
        ) from None
    except ValueError as error:
        if not name:
            raise
        raise UserError(f"{repo}: {name!r}: {in_one_line(error, 120)} Correct `weights` in params.yaml.") from None
    except RevisionNotFoundError:
        raise UserError(
            f"weights.revision: {repo} has no revision {revision!r}; give a branch, a tag or a full commit hash."
        ) from None
    except LocalEntryNotFoundError as error:
        raise UserError(_unreachable(repo, error)) from None
    except EntryNotFoundError:
        raise UserError(f"{repo}: has no file {name!r}; correct `weights` in params.yaml.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(
                f"{repo}: the hub rejected the token, or requires one (status {status}); {LOG_IN}."
            ) from None
        raise UserError(_unreachable(repo, error)) from None
    except HTTPError as error:
        raise UserError(_unreachable(repo, error)) from None
    except OSError as error:
        if error.errno in REASONS:
            raise UserError(
                f"{constants.HF_HUB_CACHE}: {repo} could not be written there: {REASONS[error.errno]}, "
                "or set HF_HOME to another folder."
            ) from None
        if error.errno is not None and error.errno != errno.EIO:
            raise
        raise UserError(_unreachable(repo, error)) from None


def _unreachable(repo: str, error: Exception) -> str:
    reason = _shown(in_one_line(error, 200))
    return (
        f"{repo}: could not be downloaded from {_shown(constants.ENDPOINT)} ({reason}); check the network and run "
        "again: files that are complete are kept."
    )


def _shown(text: str) -> str:
    """A text without the user names and passwords in its URLs."""
    return re.sub(r"//[^/\s]*@", "//", text)


def _without_password(record: logging.LogRecord) -> bool:
    record.msg, record.args = _shown(record.getMessage()), ()
    return True
