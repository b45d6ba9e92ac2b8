"""A stand-in for the Hugging Face hub on the loopback address, for the real `huggingface_hub` to talk to."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".ckpt", ".zip")
LFS_SIZE = 1_000_000  # bytes; what is larger is in large file storage whatever its name
REPO = r"(?P<repo>[^/]+(?:/[^/]+)?)"
API = re.compile(rf"/api/models/{REPO}(?:/(?P<what>revision|tree)/(?P<revision>[^/]+)(?:/(?P<path>.+))?)?")
RESOLVE = re.compile(rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass(frozen=True)
class Blob:
    """What git knows of a file: the id of the blob, or of the pointer to `sha256` in large file storage."""

    size: int
    oid: str
    sha256: str | None = None
    pointer_size: int = 0

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    def lfs(self, key: str) -> dict:
        """The entry of large file storage, if it is there; the hub names the hash differently in different answers."""
        return {"lfs": {key: self.sha256, "size": self.size, "pointerSize": self.pointer_size}} if self.sha256 else {}


def _git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@cache
def _blob(path: Path, size: int, _modified: int) -> Blob:
    content = path.read_bytes()
    if path.suffix not in LFS_SUFFIXES and size <= LFS_SIZE:
        return Blob(size, _git_id(content))
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return Blob(size, _git_id(pointer), sha256, len(pointer))


class Repository:
    """A folder as a repository of one commit, whose hash changes with the content."""

    def __init__(self, folder: Path):
        files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
        stats = {name: path.stat() for name, path in files.items()}
        self.blobs = {n: _blob(p.resolve(), stats[n].st_size, stats[n].st_mtime_ns) for n, p in files.items()}
        self.commit = hashlib.sha1("".join(f"{b.oid} {name}\n" for name, b in self.blobs.items()).encode()).hexdigest()

    def tree(self, path: str, recursive: bool) -> list[dict]:
        """The entries below a folder, as the tree endpoint lists them; none: there is no such folder."""
        start = f"{path}/" if path else ""
        names = [name.removeprefix(start) for name in self.blobs if name.startswith(start)]
        folders = sorted({parent.as_posix() for name in names for parent in Path(name).parents} - {"."})
        entries = [{"type": "directory", "path": start + f, "oid": _git_id(f.encode()), "size": 0} for f in folders]
        for name in names:
            blob = self.blobs[start + name]
            file = {"type": "file", "path": start + name, "oid": blob.oid, "size": blob.size}
            entries.append(file | blob.lfs("oid"))
        return [e for e in entries if recursive or "/" not in e["path"].removeprefix(start)]


class HubError(Exception):
    """An answer that is an error: its status, and what the hub's headers say of it."""

    def __init__(self, status: int, code: str, message: str, **headers: str):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | headers


class Hub:
    """Serves the folders `root/<owner>/<name>` (and `root/<name>`) as model repositories, with faults on demand.

    A file is known as `<repository>/<path>`; faults name it by any end of that. A connection that drops is closed after
    so many bytes of the body.

    Parameters
    ----------
    root : folder
        Read anew for every request, so a test may change it while the hub is up.

    Attributes
    ----------
    missing_status : int
        The status for an unknown repository if the request has no token: 404, or 401 like the real hub.
    drop_after, drop_always : dict
        Bytes by file: the connection drops once (the entry goes), or with every request.
    corrupt : set
        Files served with one byte flipped, under their true etag.
    private, gated : set
        Repositories that are not found without `token`, and repositories whose files are refused.
    requests : list
        Method, path and Range header (or "") of every request.
    downloads : list
        The files whose bodies were sent, wholly or in part; `sent` counts their bytes.
    """

    token = "hf_standin"

    def __init__(self, root: Path):
        self.root = root
        self.missing_status = 404
        self.drop_after: dict[str, int] = {}
        self.drop_always: dict[str, int] = {}
        self.corrupt: set[str] = set()
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.requests: list[tuple[str, str, str]] = []
        self.downloads: list[str] = []
        self.sent: Counter[str] = Counter()
        self.uploaded: dict[str, dict[str, bytes]] = {}  # of each repository, by path
        self.stored: dict[str, bytes] = {}  # large files by their SHA-256
        self._lock = threading.Lock()

    def __enter__(self) -> Hub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """What to merge into a subprocess's environment: this hub, an own cache, no token, no proxy, not offline."""
        empty = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        return dict.fromkeys(empty, "") | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def forget(self) -> None:
        """Empties the records of what was asked and sent; the faults stay."""
        for record in (self.requests, self.downloads, self.sent):
            record.clear()

    def open(self, repo: str, revision: str, authorization: str) -> Repository:
        """The repository at a revision, or the hub's reason to refuse it."""
        if authorization not in ("", f"Bearer {self.token}"):
            raise HubError(401, "", "Invalid credentials in Authorization header")
        folder = self.root / repo
        hidden = repo in self.private and not authorization
        if hidden or not folder.is_dir() or not any(p.is_file() for p in folder.iterdir()):
            status = 401 if hidden else 404 if authorization else self.missing_status
            message = "Invalid username or password." if status == 401 else "Repository not found"
            raise HubError(status, "RepoNotFound", message)
        repository = Repository(folder)
        if revision not in ("main", repository.commit):
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository

    def content(self, file: str) -> bytearray:
        """The bytes that are served as a file: its own, or corrupted ones."""
        content = bytearray((self.root / file).read_bytes())
        if content and file.endswith(tuple(self.corrupt)):
            content[len(content) // 2] ^= 0xFF
        return content

    def begin(self, file: str, size: int) -> int:
        """Records that `size` bytes of a file are about to be sent; returns how many of them to send."""
        with self._lock:
            faults = (self.drop_always | self.drop_after).items()
            sent, fault = min(((n, end) for end, n in faults if file.endswith(end) and n < size), default=(size, None))
            self.drop_after.pop(fault, None)
            self.downloads.append(file)
            self.sent[file] += sent
            return sent


class _Handler(BaseHTTPRequestHandler):
    """Answers the requests of `huggingface_hub`: repository, tree and files."""

    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.hub.requests.append((self.command, unquote(url.path), self.headers.get("Range", "")))
        try:
            if match := RESOLVE.fullmatch(url.path):
                self.file(*map(unquote, match.groups()))
            elif match := API.fullmatch(url.path):
                self.api(parse_qs(url.query), **{k: unquote(v or "") for k, v in match.groupdict().items()})
            else:
                raise HubError(404, "", "Not Found")
        except HubError as error:
            self.answer(error.status, {"error": str(error)}, error.headers)
        except ConnectionError:  # the other side has gone
            self.close_connection = True

    do_HEAD = do_GET  # noqa: N815

    @property
    def authorization(self) -> str:
        return self.headers.get("Authorization", "")

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def answer(self, status: int, content: object, headers: dict[str, str]) -> None:
        body = json.dumps(content).encode()
        self.head(status, {"Content-Type": "application/json", "Content-Length": str(len(body))} | headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def api(self, query: dict[str, list[str]], repo: str, what: str, revision: str, path: str) -> None:
        repository = self.hub.open(repo, revision or "main", self.authorization)
        if what == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            content: object = repository.tree(path, recursive)
            if path and not content:
                raise HubError(404, "EntryNotFound", f"{path} does not exist on {revision}")
        else:
            siblings = [{"rfilename": name} for name in repository.blobs]
            if "blobs" in query:
                for sibling, blob in zip(siblings, repository.blobs.values(), strict=True):
                    sibling |= {"blobId": blob.oid, "size": blob.size} | blob.lfs("sha256")
            flags = {"private": repo in self.hub.private, "gated": "manual" if repo in self.hub.gated else False}
            content = {"id": repo, "modelId": repo, "sha": repository.commit, "tags": [], "siblings": siblings} | flags
        self.answer(200, content, {})

    def file(self, repo: str, revision: str, file: str) -> None:
        repository = self.hub.open(repo, revision, self.authorization)
        commit = {"X-Repo-Commit": repository.commit}
        if repo in self.hub.gated:
            raise HubError(403, "GatedRepo", f"Access to model {repo} is restricted", **commit)
        if file not in repository.blobs:
            raise HubError(404, "EntryNotFound", "Entry not found", **commit)
        blob = repository.blobs[file]
        status, first, last = 200, 0, blob.size - 1
        headers = commit | {
            "Content-Type": "application/octet-stream",
            "Content-Disposition": f"inline; filename*=UTF-8''{quote(Path(file).name)};",
            "Accept-Ranges": "bytes",
            "ETag": f'"{blob.etag}"',
        }
        if blob.sha256:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(blob.size)}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            status, first, last = 206, int(wanted[1]), min(int(wanted[2] or last), last)
            if first > last:
                raise HubError(416, "", "Range Not Satisfiable", **{"Content-Range": f"bytes */{blob.size}"})
            headers["Content-Range"] = f"bytes {first}-{last}/{blob.size}"
        self.head(status, headers | {"Content-Length": str(last + 1 - first)})
        if self.command == "GET":
            body = memoryview(self.hub.content(f"{repo}/{file}"))[first : last + 1]
            sent = self.hub.begin(f"{repo}/{file}", len(body))
            self.wfile.write(body[:sent])
            self.close_connection |= sent < len(body)

    def do_POST(self) -> None:
        url = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append((self.command, url, ""))
        try:
            if not url.startswith("/store/") and self.authorization != f"Bearer {self.hub.token}":
                raise HubError(401, "", "Invalid username or password.")
            self.answer(*self.write(url, body), {})
        except HubError as error:
            self.answer(error.status, {"error": str(error)}, error.headers)

    do_PUT = do_POST  # noqa: N815

    def write(self, url: str, body: bytes) -> tuple[int, object]:
        """Answers the requests of an upload: repository, card, kind of each file, large files, commit."""
        if url.startswith("/store/"):
            self.hub.stored[url.removeprefix("/store/")] = body
            return 200, {}
        if url == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        content = json.loads(body.splitlines()[0])
        if url == "/api/repos/create":
            repo = f"{content['organization']}/{content['name']}" if content.get("organization") else content["name"]
            status = 409 if repo in self.hub.uploaded else 200
            self.hub.uploaded.setdefault(repo, {})
            return status, {"url": f"{self.hub.url}/{repo}"}
        if url.endswith("/info/lfs/objects/batch"):
            objects = [
                x | {"actions": {"upload": {"href": f"{self.hub.url}/store/{x['oid']}"}}} for x in content["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        found = re.fullmatch(rf"/api/models/{REPO}/(preupload|commit)/main", url)
        if found is None:
            raise HubError(404, "", "Not Found")
        if found[2] == "preupload":
            kinds = {True: "lfs", False: "regular"}
            return 200, {
                "files": [
                    {"path": f["path"], "uploadMode": kinds[f["path"].endswith(LFS_SUFFIXES)], "shouldIgnore": False}
                    for f in content["files"]
                ]
            }
        files = self.hub.uploaded[found["repo"]]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
        return 200, {"commitUrl": f"{self.hub.url}/{found['repo']}/commit/1", "commitOid": "1" * 40, "hookOutput": ""}

    def log_message(self, *_) -> None:
        """Silence: what was asked stands in `Hub.requests`."""


def reach(monkeypatch, url: str) -> None:
    """Makes this process use `url` as the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
