"""A local server that speaks as much of the Hugging Face hub's protocol as loading checkpoints needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]

_API = re.compile(r"/api/models/([^/]+/[^/]+)/(refs|revision|tree)(?:/([^/]+))?")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


def read_folder(folder: Path) -> Files:
    """A `save_pretrained` folder as a branch."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@dataclass
class Fault:
    """Something that goes wrong with requests for paths that contain a text.

    Attributes:
        part: the text.
        status: what such requests are answered with.
        times: how many of them; then all is well again.
        headers: sent with the answer.
    """

    part: str
    status: int
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class HubServer:
    """Repositories by name, each branch -> files; used as a context manager.

    Attributes:
        repositories: `org/name` -> branch or tag -> file name -> bytes.
        tags: names that are tags; the others are branches.
        renamed: earlier `org/name` -> today's, to which requests are redirected.
        requests: (method, path) of every request, in order.
        cuts: file name -> bytes after which its next downloads break off, one after the other.
        on_cut: called after each cut.
        resumed_at: first byte of every download that began within a file.
        damage: names of files that are sent with their last byte changed, and how often; -1 is always.
        truncated: names of files that are sent without their second half, as if they were stored like this.
        missing: branches and tags that are listed but cannot be opened.
        faults: what goes wrong, in order.
        on_cdn: send large files from another host, to which `resolve` redirects with a signed address.
        sent_tokens: (host, path, Authorization header) of every request that had one.
        status: answer every request with this status instead.
        holds: requests for paths with this text are not answered while it is set.
        holds_after: file name -> bytes after which a longer download stops arriving, without an end, while it is there.
        delay: seconds before each listing of a revision.
        busiest: the largest number of listings that were asked for at the same time.
    """

    repositories: dict[str, dict[str, Files]]
    tags: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    on_cut: Callable[[], object] = lambda: None
    resumed_at: list[int] = field(default_factory=list)
    damage: dict[str, int] = field(default_factory=dict)
    truncated: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    on_cdn: bool = False
    sent_tokens: list[tuple[str, str, str]] = field(default_factory=list)
    status: int | None = None
    holds: str | None = None
    holds_after: dict[str, int] = field(default_factory=dict)
    delay: float = 0.0
    busiest: int = 0
    _busy: int = 0

    def __enter__(self) -> HubServer:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def cdn(self) -> str:
        return f"http://localhost:{self._server.server_port}"

    def fault(self, path: str) -> Fault | None:
        """The first fault that concerns a path and is not used up."""
        for fault in self.faults:
            if fault.part in path and fault.times != 0:
                fault.times -= 1
                return fault
        return None

    def commit(self, repository: str, branch: str) -> str:
        """A branch's commit hash: follows from its name and content."""
        digest = hashlib.sha1(branch.encode())
        for name, data in sorted(self.repositories[repository][branch].items()):
            digest.update(name.encode() + data)
        return digest.hexdigest()

    def downloads(self, ending: str) -> list[str]:
        """Paths of the files with this ending whose bytes were asked for."""
        return [
            path for method, path in self.requests if method == "GET" and "/resolve/" in path and path.endswith(ending)
        ]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if token := self.headers.get("Authorization"):
            self.hub.sent_tokens.append((self.headers.get("Host", "").partition(":")[0], path, token))
        while self.hub.holds is not None and self.hub.holds in path:
            time.sleep(0.02)
        if self.hub.status is not None:
            return self._error(self.hub.status, "")
        if (fault := self.hub.fault(path)) is not None:
            return self._send(fault.status, b"{}", fault.headers, self.command == "GET", None)
        for old, new in self.hub.renamed.items():
            if f"/{old}/" in path:
                return self._send(307, b"", {"Location": self.path.replace(f"/{old}/", f"/{new}/")}, True, None)
        if match := _API.fullmatch(path):
            return self._api(*match.groups())
        if match := _RESOLVE.fullmatch(path):
            if self.hub.on_cdn and _is_large(path) and not self.headers.get("Host", "").startswith("localhost"):
                signed = {"Location": f"{self.hub.cdn}{self.path}?X-Amz-Signature=secret"}
                return self._send(302, b"", signed, True, None)
            return self._file(*match.groups(), with_body=with_body)
        return self._error(404, "EntryNotFound")

    def _api(self, repository: str, what: str, revision: str | None) -> None:
        if repository not in self.hub.repositories:
            return self._error(404, "RepoNotFound")
        if what == "refs":
            refs: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": []}
            for name in self.hub.repositories[repository]:
                kind, place = ("tags", "tags") if name in self.hub.tags else ("branches", "heads")
                commit = self.hub.commit(repository, name)
                refs[kind].append({"name": name, "ref": f"refs/{place}/{name}", "targetCommit": commit})
            return self._json(refs)
        branch = self._branch(repository, revision or "main")
        if branch is None:
            return self._error(404, "RevisionNotFound")
        files = self.hub.repositories[repository][branch].items()
        if what == "tree":
            return self._json([_entry(name, data) for name, data in files])
        self.hub._busy += 1
        self.hub.busiest = max(self.hub.busiest, self.hub._busy)
        time.sleep(self.hub.delay)
        self.hub._busy -= 1
        siblings = [_sibling(name, data) for name, data in files]
        return self._json({"id": repository, "sha": self.hub.commit(repository, branch), "siblings": siblings})

    def _file(self, repository: str, revision: str, name: str, with_body: bool) -> None:
        if repository not in self.hub.repositories:
            return self._error(404, "RepoNotFound")
        branch = self._branch(repository, revision)
        if branch is None:
            return self._error(404, "RevisionNotFound")
        data = self.hub.repositories[repository][branch].get(name)
        if data is None:
            return self._error(404, "EntryNotFound")
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": self.hub.commit(repository, branch),
            "Accept-Ranges": "bytes",
        }
        if with_body and self.hub.damage.get(name, 0) != 0:
            self.hub.damage[name] -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        if name in self.hub.truncated:
            data = data[: len(data) // 2]
        status, start = 200, 0
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            status, start = 206, int(wanted[1])
            if start >= len(data):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"}, with_body, None)
            self.hub.resumed_at.append(start)
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if with_body and len(data) > (first := self.hub.holds_after.get(name, len(data))):
            return self._hold(status, data[start:], headers, name, first)
        left = self.hub.cuts.get(name, []) if with_body else []
        stop = left.pop(0) if left else None
        self._send(status, data[start:], headers, with_body, stop)
        return None

    def _hold(self, status: int, data: bytes, headers: dict[str, str], name: str, first: int) -> None:
        """Send the first bytes, then nothing until the client has gone or `holds_after` is cleared."""
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:first])
        self.wfile.flush()
        while name in self.hub.holds_after:
            time.sleep(0.02)
        self.close_connection = True

    def _branch(self, repository: str, revision: str) -> str | None:
        branches = self.hub.repositories[repository]
        if revision in self.hub.missing:
            return None
        if revision in branches:
            return revision
        return next((name for name in branches if self.hub.commit(repository, name) == revision), None)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, True, None)

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, self.command == "GET", None)

    def _send(self, status: int, data: bytes, headers: dict[str, str], with_body: bool, stop: int | None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.wfile.write(data[:stop])
        if stop is not None:
            self.wfile.flush()
            self.close_connection = True
            self.hub.on_cut()


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def _blob(data: bytes) -> str:
    """What git calls a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _lfs(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _entry(name: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": _blob(data)}
    if _is_large(name):
        entry["lfs"] = {"oid": _lfs(data), "size": len(data), "pointerSize": 130}
    return entry


def _sibling(name: str, data: bytes) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": _blob(data)}
    if _is_large(name):
        sibling["lfs"] = {"sha256": _lfs(data), "size": len(data), "pointerSize": 130}
    return sibling
