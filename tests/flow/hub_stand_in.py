"""A server on loopback that speaks as much of the hub's protocol as publishing and fetching models takes.

Repositories are lists of commits; large files go to a store of their own first, by their SHA-256, as Git LFS has it.
Paths and answers are those that `huggingface_hub` sends and reads.
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

import yaml

USER = "user"
LARGE = 20_000
"""Files of as many bytes or more are sent to the store of large files."""

Fault = Callable[[str, str], str]
"""Says of a request, by its method and path, what goes wrong: `drop`, a status such as `500`, or nothing."""


@dataclass
class Repository:
    """One repository: whether it is private, and the files of each commit, by the commit's id."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.head]

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[sha] = files
        return sha


@dataclass
class Hub:
    """All that the server holds, and what it was asked."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    fault: Fault = lambda method, path: ""
    address: str = ""

    def asked(self, part: str) -> int:
        """Return how many requests had `part` in them."""
        return sum(part in request for request in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve(
            (r"/api/whoami-v2", self._whoami),
            (r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self._info),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", self._tree),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._file),
        )

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self._serve(
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._validate),
            (r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", self._preupload),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/store/verify", self._verify),
            (r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", self._commit),
        )

    def do_PUT(self) -> None:
        self._serve((r"/store/([0-9a-f]{64})", self._store))

    def _serve(self, *routes: tuple[str, Callable[..., None]]) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {path}")
        trouble = self.hub.fault(self.command, path)
        if trouble == "drop":
            self.close_connection = True
            self.connection.close()
            return
        if trouble:
            self._send(int(trouble), {"error": "trouble"})
            return
        for pattern, answer in routes:
            if found := re.fullmatch(pattern, path):
                answer(*found.groups())
                return
        self._send(404, {"error": "no such page"})

    def _send(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _found(self, name: str, revision: str | None = None) -> tuple[Repository, str] | None:
        """Return a repository with the commit that is meant; answer where there is none."""
        there = self.hub.repositories.get(name)
        if there is None or (there.private and not self._known()):
            return self._missing("RepoNotFound")
        commit = there.head if revision in (None, "main") else revision
        return (there, commit) if commit in there.commits else self._missing("RevisionNotFound")

    def _missing(self, what: str) -> None:
        self._send(404, {"error": what}, {"X-Error-Code": what, "X-Error-Message": what})

    def _known(self) -> bool:
        return self.headers.get("Authorization", "").startswith("Bearer ")

    def _whoami(self) -> None:
        if self._known():
            self._send(200, {"type": "user", "name": USER, "orgs": [{"name": "team"}], "auth": {}})
        else:
            self._send(401, {"error": "no token"})

    def _create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or USER}/{asked['name']}"
        if name in self.hub.repositories:
            self._send(409, {"error": "it is there", "url": f"{self.hub.address}/{name}"})
            return
        private = asked.get("private", False) or asked.get("visibility") == "private"
        self.hub.repositories[name] = Repository(private)
        self.hub.repositories[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self._send(200, {"url": f"{self.hub.address}/{name}", "name": name, "id": "1"})

    def _validate(self) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def _info(self, name: str, revision: str | None) -> None:
        if found := self._found(name, revision):
            there, commit = found
            siblings = [{"rfilename": file} for file in sorted(there.commits[commit])]
            told = {"_id": "1", "id": name, "modelId": name, "sha": commit, "private": there.private, "tags": []}
            card = there.commits[commit].get("README.md", b"").decode().split("---")
            told |= {"cardData": yaml.safe_load(card[1])} if len(card) > 2 else {}
            self._send(200, {**told, "siblings": siblings, "downloads": 0, "likes": 0})

    def _tree(self, name: str, revision: str, folder: str | None) -> None:
        if found := self._found(name, revision):
            there, commit = found
            below = f"{folder}/" if folder else ""
            files = {file: content for file, content in there.commits[commit].items() if file.startswith(below)}
            if not files:
                self._missing("EntryNotFound")
                return
            self._send(200, [_entry(file, content) for file, content in sorted(files.items())])

    def _file(self, name: str, revision: str, file: str) -> None:
        if not (found := self._found(name, revision)):
            return
        there, commit = found
        content = there.commits[commit].get(file)
        if content is None:
            self._missing("EntryNotFound")
            return
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = content[int(first or 0) : int(last) + 1 if last else None]
        tag = _entry(file, content)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{tag["lfs"]["oid"] if "lfs" in tag else tag["oid"]}"'}
        self._send(206 if "Range" in self.headers else 200, part, {**headers, "Accept-Ranges": "bytes"})

    def _preupload(self, name: str, revision: str) -> None:
        if self._found(name, revision):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(self.body)["files"]
            ]
            self._send(200, {"files": modes})

    def _batch(self, name: str) -> None:
        def place(one: dict[str, Any]) -> dict[str, Any]:
            if one["oid"] in self.hub.large:
                return one
            actions = {"upload": {"href": f"{self.hub.address}/store/{one['oid']}"}}
            return {**one, "actions": {**actions, "verify": {"href": f"{self.hub.address}/store/verify"}}}

        self._send(200, {"transfer": "basic", "objects": [place(one) for one in json.loads(self.body)["objects"]]})

    def _store(self, digest: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != digest:
            self._send(400, {"error": "other bytes than announced"})
            return
        self.hub.large[digest] = self.body
        self._send(200, b"")

    def _verify(self) -> None:
        asked = json.loads(self.body)
        whole = len(self.hub.large.get(asked["oid"], b"")) == asked["size"]
        self._send(200 if whole else 404, {})

    def _commit(self, name: str, revision: str) -> None:
        if not (found := self._found(name, revision)):
            return
        there, parent = found
        rows = [json.loads(line) for line in self.body.splitlines()]
        if rows[0]["value"].get("parentCommit", parent) != parent:
            self._send(412, {"error": "the repository was changed meanwhile"})
            return
        files = dict(there.files)
        for row in rows[1:]:
            path = row["value"]["path"]
            if row["key"] == "file":
                files[path] = base64.b64decode(row["value"]["content"])
            elif row["key"] == "lfsFile":
                files[path] = self.hub.large[row["value"]["oid"]]
            else:
                del files[path]
        sha = there.commit(files)
        if self.hub.fault("ANSWER", "commit") == "drop":
            self.close_connection = True
            self.connection.close()
            return
        self._send(200, {"commitUrl": f"{self.hub.address}/{name}/commit/{sha}", "commitOid": sha, "success": True})


def _entry(file: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    row: dict[str, Any] = {"type": "file", "path": file, "size": len(content), "oid": blob}
    if len(content) >= LARGE:
        row["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return row


@contextmanager
def serving() -> Iterator[Hub]:
    """Yield a hub that answers at its `address` for as long as the context lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
