"""A Hugging Face hub on 127.0.0.1 for tests, speaking what `huggingface_hub` needs to read model repositories.

Unusual: it can misbehave on request. The switches are plain attributes, read at each request: `delay` (seconds before
any answer), `status` (answer everything with this HTTP status), `drop` (file -> bytes after which the connection is
cut, once each), `dead_after_drop` (a cut also stops the server for good), `corrupt` (files served with one bit
changed), `hold` (files that arrive byte by byte after the first `chunk`, until they are taken out). `log` lists what
was asked. LFS files (weights) are redirected to a "CDN" under another host name with `X-Linked-Etag` = sha256, as the
real hub does; Xet is not offered.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_LFS = (".safetensors", ".gguf", ".bin", ".pth")


def is_lfs(name: str) -> bool:
    return name.endswith(_LFS)


def etag(name: str, data: bytes) -> str:
    """What the hub uses: sha256 for LFS files, git's blob id for others."""
    if is_lfs(name):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """One model repository: the files of each commit, and which commit each branch or tag means."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        """Add a commit that holds `files` and let `ref` point to it; returns its hash."""
        sha = hashlib.sha1(repr((ref, sorted(files.items()))).encode()).hexdigest()
        self.commits[sha] = files
        self.refs[ref] = sha
        return sha


class HubServer:
    """`with HubServer() as hub:` serves `hub.repos` at `hub.url`.

    `hub.tokens` may read gated repositories; any other token is valid and has no access; hf_expired is not valid.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens: set[str] = set()
        self.delay = 0.0
        self.status: int | None = None
        self.drop: dict[str, int] = {}
        self.dead_after_drop = False
        self.corrupt: set[str] = set()
        self.hold: set[str] = set()
        self.chunk = 4096
        self.log: list[tuple[str, str, str | None]] = []  # method, path, Range header
        self._stop = threading.Event()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._http = _QuietServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.cdn = self.url.replace("127.0.0.1", "localhost")  # the library follows redirects within one host by itself
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def add(self, repo_id: str, files: dict[str, bytes], *, gated: bool = False) -> Repo:
        repo = self.repos.setdefault(repo_id, Repo())
        repo.gated = gated
        repo.commit(files)
        return repo

    def asked(self, method: str, name: str) -> list[str | None]:
        """Range headers of the requests with this method whose path ends in `name`."""
        return [range_ for m, path, range_ in self.log if m == method and path.endswith(name)]

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def wait(self, seconds: float) -> None:
        self._stop.wait(seconds)

    def stop(self) -> None:
        """Refuse connections from now on."""
        self._stop.set()
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if not self.stopped:
            self.stop()
        self._thread.join()


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up or get killed are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server_hub
        if hub.stopped:  # this connection outlived the server
            self.close_connection = True
            return None
        path = unquote(urlsplit(self.path).path)
        hub.log.append((self.command, path, self.headers.get("Range")))
        if hub.delay:
            hub.wait(hub.delay)
        if hub.status is not None:
            return self._send(hub.status, b"out of order")
        if path == "/":
            return self._send(200, b"a hub")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
            return self._api(found[1], found[2], found[3] or "main")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/(refs/pr/\d+|[^/]+)/(.+)", path):
            return self._resolve(found[1], found[2], found[3])
        if found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(\w{40})/(.+)", path):
            return self._file(found[3], hub.repos[found[1]].commits[found[2]][found[3]], {})
        return self._send(404, b"no such page")

    def _find(self, repo_id: str, revision: str) -> tuple[Repo, str] | None:
        if self.headers.get("Authorization") == "Bearer hf_expired":
            self._error(401, None, "Invalid credentials in Authorization header")
            return None
        repo = self.server_hub.repos.get(repo_id)
        if repo is None:
            # As the hub does: strangers can't tell a private repository from one that does not exist.
            if self.headers.get("Authorization") is None:
                self._error(401, None, "Invalid username or password.")
            else:
                self._error(404, "RepoNotFound", "Repository not found")
            return None
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo, sha

    def _api(self, repo_id: str, kind: str | None, revision: str) -> None:
        if (found := self._find(repo_id, revision)) is None:
            return
        repo, sha = found
        files = repo.commits[sha]
        if kind == "tree":
            body: object = [
                {"type": "file", "path": name, "size": len(data), "oid": etag("", data)}
                | ({"lfs": {"oid": etag(name, data), "size": len(data), "pointerSize": 130}} if is_lfs(name) else {})
                for name, data in files.items()
            ]
        else:
            siblings = [
                {"rfilename": name, "size": len(data), "blobId": etag("", data)}
                | ({"lfs": {"sha256": etag(name, data), "size": len(data), "pointerSize": 130}} if is_lfs(name) else {})
                for name, data in files.items()
            ]
            body = {"id": repo_id, "modelId": repo_id, "sha": sha, "private": False, "tags": [], "siblings": siblings}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repo_id: str, revision: str, name: str) -> None:
        if (found := self._find(repo_id, revision)) is None:
            return
        repo, sha = found
        if repo.gated:
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if token not in self.server_hub.tokens:
                self._error(403 if token else 401, "GatedRepo", f"Access to model {repo_id} is restricted.")
                return
        data = repo.commits[sha].get(name)
        if data is None:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
            return
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag(name, data)}"'}
        if is_lfs(name):
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": headers["ETag"]}
            headers |= {"Location": f"{self.server_hub.cdn}/cdn/{repo_id}/{sha}/{name}"}
            self._send(302, b"", headers)
        else:
            self._file(name, data, headers)

    def _file(self, name: str, data: bytes, headers: dict[str, str]) -> None:
        hub = self.server_hub
        if name in hub.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start, status, total = 0, 200, len(data)
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start, status = int(found[1]), 206
            headers = headers | {"Content-Range": f"bytes {start}-{total - 1}/{total}"}
        if self.command == "HEAD":
            return self._send(status, data[start:], headers)
        limit = hub.drop.pop(name, None)
        self._headers(status, total - start, headers)
        end = total if limit is None else min(total, start + limit)
        at, size = start, hub.chunk
        while at < end:
            self.wfile.write(data[at : min(at + size, end)])
            self.wfile.flush()
            at += size
            size = hub.chunk
            if name in hub.hold and not hub.stopped:  # not silence, which clients take for a broken connection
                size = 1
                hub.wait(0.1)
        if limit is not None:
            self.close_connection = True
            if hub.dead_after_drop:
                hub.stop()
        return None

    def _error(self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None) -> None:
        more = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (headers or {})
        self._send(status, json.dumps({"error": message}).encode(), more)

    def _headers(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._headers(status, len(body), headers or {})
        if self.command != "HEAD":
            self.wfile.write(body)


def wait_until(condition: Callable[[], object], seconds: float = 300.0) -> None:
    """Poll until `condition()` is true; TimeoutError after `seconds`, which a busy machine may need."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("condition did not come true")
        time.sleep(0.01)
