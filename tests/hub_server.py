"""A small server that speaks enough of the Hub's HTTP for its real client: create, upload, commit, list, download.

Commits are atomic, as on the Hub. `Hub.faults` makes chosen requests fail before or after they took effect.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]
_LARGE = (".safetensors", ".bin")


@dataclass
class Repo:
    """One repository: its commits in order, each a whole tree."""

    private: bool = False
    gated: bool = False
    commits: list[tuple[str, str, Files]] = field(default_factory=list)  # (sha, message, files)

    def add(self, message: str, files: Files) -> str:
        """A new commit."""
        sha = hashlib.sha1(f"{len(self.commits)}{message}".encode()).hexdigest()
        self.commits.append((sha, message, files))
        return sha

    def at(self, revision: str) -> tuple[str, Files] | None:
        """Commit and files of a branch or commit."""
        for sha, _, files in reversed(self.commits):
            if revision in ("main", sha):
                return sha, files
        return None


@dataclass
class Fault:
    """Something that goes wrong, once.

    Attributes:
        request: pattern of "METHOD /path".
        status: of the answer; None: the connection is dropped.
        headers: of the answer.
        done: the request takes effect all the same.
    """

    request: str
    status: int | None
    headers: dict[str, str] = field(default_factory=dict)
    done: bool = False


class Hub:
    """What the server knows, and what it was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.tokens = {"hf_write": "write", "hf_read": "read"}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.url = ""


def git_oid(data: bytes) -> str:
    """The name git gives to a file's bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def oid_of(name: str, data: bytes) -> str:
    """SHA-256 of large files, git's name of the others."""
    return hashlib.sha256(data).hexdigest() if name.endswith(_LARGE) else git_oid(data)


class _RefusedError(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status)
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: object) -> None:
        """Nothing on stderr."""

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        asked = f"{self.command} {path}"
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(asked)
        fault = next((f for f in self.hub.faults if re.search(f.request, asked)), None)
        if fault is not None:
            self.hub.faults.remove(fault)
        try:
            answer: tuple[int, dict[str, str], bytes] = (500, {}, b"")
            if fault is None or fault.done:
                answer = self._route(path, body)
        except _RefusedError as refused:
            answer = (refused.status, refused.headers, b"{}")
        if fault is not None and fault.status is None:
            self.close_connection = True
            self.connection.close()
            return
        status, headers, data = (fault.status, fault.headers, b"{}") if fault and fault.status else answer
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815

    def _route(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        for pattern, method in _ROUTES.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return method(self, body, *found.groups())
        raise _RefusedError(404)

    # --- who asks, and for what

    def _role(self) -> str | None:
        return self.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _writer(self) -> None:
        if self._role() is None:
            raise _RefusedError(401)
        if self._role() != "write":
            raise _RefusedError(403, message="Forbidden: you do not have the rights")

    def _repo(self, name: str) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self._role() is None):
            raise _RefusedError(404 if self._role() else 401, "RepoNotFound")
        return repo

    def _at(self, name: str, revision: str) -> tuple[str, Files]:
        found = self._repo(name).at(revision)
        if found is None:
            raise _RefusedError(404, "RevisionNotFound")
        return found

    # --- answers

    def _whoami(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self._role() is None:
            raise _RefusedError(401)
        return _json({"name": "org", "type": "user", "auth": {"accessToken": {"role": self._role()}}})

    def _create(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        self._writer()
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'org'}/{asked['name']}"
        if name.startswith("others/"):
            raise _RefusedError(403, message="no rights in the namespace others")
        there = name in self.hub.repos
        if not there:
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.repos[name] = Repo(private)
            self.hub.repos[name].add("initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        status, headers, data = _json({"url": f"{self.hub.url}/{name}", "id": name})
        return (409 if there else status), headers, data

    def _validate(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return _json({"errors": [], "warnings": []})

    def _preupload(self, body: bytes, name: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        self._writer()
        _, files = self._at(name, revision)
        found = []
        for entry in json.loads(body)["files"]:
            path = entry["path"]
            mode = "lfs" if path.endswith(_LARGE) else "regular"
            oid = oid_of(path, files[path]) if path in files else None
            found.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return _json({"files": found})

    def _batch(self, body: bytes, name: str) -> tuple[int, dict[str, str], bytes]:
        self._writer()
        objects = []
        for entry in json.loads(body)["objects"]:
            found: dict[str, Any] = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.hub.blobs:
                found["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}", "header": {}},
                    "verify": {"href": f"{self.hub.url}/verify", "header": {}},
                }
            objects.append(found)
        return _json({"transfer": "basic", "objects": objects})

    def _upload(self, body: bytes, oid: str) -> tuple[int, dict[str, str], bytes]:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _RefusedError(400)
        self.hub.blobs[oid] = body
        return _json({})

    def _verify(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if json.loads(body)["oid"] not in self.hub.blobs:
            raise _RefusedError(404)
        return _json({})

    def _commit(self, body: bytes, name: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        self._writer()
        sha, files = self._at(name, revision)
        files, lines = dict(files), [json.loads(line) for line in body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, sha):
            raise _RefusedError(412, message="the parent is not the last commit")
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                if value["path"] not in files:
                    raise _RefusedError(404, "EntryNotFound")
                del files[value["path"]]
        sha = self._repo(name).add(header["summary"], files)
        return _json({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha, "pullRequestUrl": None})

    def _info(self, body: bytes, name: str, revision: str | None = None) -> tuple[int, dict[str, str], bytes]:
        repo = self._repo(name)
        sha, files = self._at(name, revision or "main")
        return _json(
            {
                "id": name,
                "modelId": name,
                "sha": sha,
                "private": repo.private,
                "gated": "manual" if repo.gated else False,
                "tags": [],
                "siblings": [{"rfilename": path} for path in sorted(files)],
            }
        )

    def _tree(self, body: bytes, name: str, revision: str) -> tuple[int, dict[str, str], bytes]:
        _, files = self._at(name, revision)
        entries = []
        for path, data in sorted(files.items()):
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
            if path.endswith(_LARGE):
                entry["lfs"] = {"oid": oid_of(path, data), "size": len(data), "pointerSize": 134}
            entries.append(entry)
        return _json(entries)

    def _resolve(self, body: bytes, name: str, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        sha, files = self._at(name, revision)
        if self._repo(name).gated and path != "README.md":
            raise _RefusedError(403 if self._role() else 401, "GatedRepo", "Access to this model is restricted")
        if path not in files:
            raise _RefusedError(404, "EntryNotFound")
        data = files[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{oid_of(path, data)}"', "Content-Length": str(len(data))}
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            begin, end = int(span[1]), int(span[2] or len(data) - 1)
            part = data[begin : end + 1]
            headers |= {"Content-Length": str(len(part)), "Content-Range": f"bytes {begin}-{end}/{len(data)}"}
            return 206, headers, part
        return 200, headers, data


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: dict[str, Callable[..., tuple[int, dict[str, str], bytes]]] = {
    r"GET /api/whoami-v2": _Handler._whoami,
    r"POST /api/repos/create": _Handler._create,
    r"POST /api/validate-yaml": _Handler._validate,
    rf"POST /api/models/{_NAME}/preupload/(.+)": _Handler._preupload,
    rf"POST /{_NAME}\.git/info/lfs/objects/batch": _Handler._batch,
    r"PUT /lfs/(\w+)": _Handler._upload,
    r"POST /verify": _Handler._verify,
    rf"POST /api/models/{_NAME}/commit/(.+)": _Handler._commit,
    rf"GET /api/models/{_NAME}": _Handler._info,
    rf"GET /api/models/{_NAME}/revision/(.+)": _Handler._info,
    rf"GET /api/models/{_NAME}/tree/([^/]+)": _Handler._tree,
    rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)": _Handler._resolve,
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *arguments: object) -> None:
        """A client that goes away is no news."""


@contextmanager
def serve() -> Iterator[Hub]:
    """A Hub of its own on a free port."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with _Server(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
