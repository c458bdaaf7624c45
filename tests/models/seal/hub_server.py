"""A model hub on this machine: an HTTP server that speaks as much of the protocol as pushing and fetching need.

Repositories live in a folder; every request is kept, so that tests can see what was sent.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    private: bool
    #: branch → commit, commit → path → sha256 of the content
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, str]] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, str], title: str) -> str:
        oid = hashlib.sha1(json.dumps([len(self.commits), branch, files]).encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        self.titles.append(title)
        return oid

    def resolve(self, revision: str) -> str | None:
        oid = self.branches.get(revision, revision)
        return oid if oid in self.commits else None

    def files(self, revision: str = "main") -> dict[str, str]:
        return self.commits[self.branches.get(revision, revision)]


class Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", body: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.code, self.message, self.body = status, code, message, body or {}


class Server(ThreadingHTTPServer):
    """Keeps its connections, which would outlive it otherwise."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.open: list[socket.socket] = []

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.open.append(connection)
        return connection, address

    def hang_up(self) -> None:
        for connection in self.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Hub:
    """The server's state; `writer` may do everything, `reader` may see private models, others see public ones."""

    def __init__(self, folder: Path, *, writer: str, reader: str, lfs: bool) -> None:
        self.folder, self.writer, self.reader, self.lfs = folder, writer, reader, lfs
        self.repos: dict[str, Repo] = {}
        self.requests: list[dict[str, Any]] = []
        #: when set, every request is answered with it
        self.status: int | None = None
        self.server: Server | None = None
        self.port = 0
        folder.mkdir(parents=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        hub = self

        class BoundHandler(Handler):
            pass

        BoundHandler.hub = hub
        self.server = Server(("127.0.0.1", self.port), BoundHandler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        assert self.server is not None
        self.server.shutdown()
        self.server.server_close()
        self.server.hang_up()

    def put(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        (self.folder / digest).write_bytes(content)
        return digest

    def get(self, digest: str) -> bytes:
        return (self.folder / digest).read_bytes()

    def make(self, repo_id: str, *, private: bool, files: dict[str, bytes] | None = None) -> Repo:
        repo = self.repos[repo_id] = Repo(private)
        repo.commit("main", {k: self.put(v) for k, v in ({".gitattributes": b"*"} | (files or {})).items()}, "initial")
        return repo

    # -- what is asked, as (method, path) -----------------------------------------------------------------------------
    def answer(self, method: str, path: str, body: bytes, token: str) -> Any:
        if self.status is not None:
            raise Refusal(self.status)
        if token not in ("", self.writer, self.reader):
            raise Refusal(401, message="Invalid credentials in Authorization header")
        parts = [unquote(p) for p in path.strip("/").split("/")]
        if path == "/api/repos/create":
            return self._create(json.loads(body), token)
        if path == "/api/validate-yaml":
            return {}
        if path.startswith("/lfs/"):
            assert self.put(body) == parts[1]
            return {}
        name = "/".join(parts[2:4] if parts[:2] == ["api", "models"] else parts[:2]).removesuffix(".git")
        repo = self._open(name, token, write=method in ("POST", "PUT"))
        if parts[:2] == ["api", "models"]:
            return self._api(name, repo, parts[4:], body)
        if parts[2] == "resolve":
            return self._file(repo, parts[3], "/".join(parts[4:]))
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            return {"objects": [o | {"actions": {"upload": {"href": f"{self.url}/lfs/{o['oid']}"}}} for o in objects]}
        raise Refusal(404)

    def _open(self, name: str, token: str, *, write: bool) -> Repo:
        repo = self.repos.get(name)
        if repo is None or (repo.private and not token):
            # The hub does not tell strangers which private models exist.
            raise Refusal(404 if token else 401, "RepoNotFound")
        if write and token != self.writer:
            raise Refusal(403, message="Forbidden")
        return repo

    def _create(self, asked: dict[str, Any], token: str) -> dict[str, str]:
        if token != self.writer:
            raise Refusal(403 if token else 401, message="Forbidden")
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repos:
            raise Refusal(409, body={"url": f"{self.url}/{name}"})
        self.make(name, private=asked.get("private") or asked.get("visibility") == "private")
        return {"url": f"{self.url}/{name}"}

    def _api(self, name: str, repo: Repo, rest: list[str], body: bytes) -> Any:
        action, revision = (rest + ["", "main"])[:2] if rest else ("", "main")
        if action == "branch":
            if revision in repo.branches:
                raise Refusal(409)
            repo.branches[revision] = repo.branches["main"]
            return {}
        if (oid := repo.resolve(revision)) is None:
            raise Refusal(404, "RevisionNotFound")
        files = repo.commits[oid]
        if action in ("", "revision"):
            siblings = [{"rfilename": path} for path in files]
            return {"id": name, "sha": oid, "private": repo.private, "siblings": siblings}
        if action == "tree":
            return [self._entry(path, digest) for path, digest in files.items()]
        if action == "preupload":
            return {"files": [self._plan(f["path"], files) for f in json.loads(body)["files"]]}
        assert action == "commit"
        return self._commit(name, repo, revision, [json.loads(line) for line in body.splitlines()])

    def _plan(self, path: str, files: dict[str, str]) -> dict[str, Any]:
        """How a file is to be uploaded, and which content is there already."""
        plan: dict[str, Any] = {"path": path, "uploadMode": self._mode(path), "shouldIgnore": False}
        if (digest := files.get(path)) and plan["uploadMode"] == "lfs":
            plan["oid"] = digest
        elif digest:
            content = self.get(digest)
            plan["oid"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return plan

    def _mode(self, path: str) -> str:
        return "lfs" if self.lfs and path.endswith(".safetensors") else "regular"

    def _entry(self, path: str, digest: str) -> dict[str, Any]:
        size = len(self.get(digest))
        entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": digest[:40]}
        if self._mode(path) == "lfs":
            entry["lfs"] = {"oid": digest, "size": size, "pointerSize": 134}
        return entry

    def _commit(self, name: str, repo: Repo, branch: str, lines: list[dict[str, Any]]) -> dict[str, str]:
        files, title = dict(repo.commits[repo.branches[branch]]), ""
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header":
                title = value["summary"]
            elif key == "file":
                files[value["path"]] = self.put(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                assert (self.folder / value["oid"]).is_file(), "committed before it was uploaded"
                files[value["path"]] = value["oid"]
            else:
                assert key == "deletedFile"
                del files[value["path"]]
        oid = repo.commit(branch, files, title)
        return {"commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid}

    def _file(self, repo: Repo, revision: str, path: str) -> tuple[bytes, dict[str, str]]:
        if (oid := repo.resolve(revision)) is None:
            raise Refusal(404, "RevisionNotFound")
        if path not in repo.commits[oid]:
            raise Refusal(404, "EntryNotFound")
        digest = repo.commits[oid][path]
        return self.get(digest), {"ETag": f'"{digest}"', "X-Repo-Commit": oid}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        entry = {"method": self.command, "path": self.path, "headers": dict(self.headers.items()), "body": body}
        self.hub.requests.append(entry)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        headers: dict[str, str] = {}
        status, content = 200, b""
        try:
            answer = self.hub.answer(self.command, path, body, token)
            if isinstance(answer, tuple):
                content, headers = answer
            else:
                content, headers = json.dumps(answer).encode(), {"Content-Type": "application/json"}
        except Refusal as refusal:
            status, content = refusal.status, json.dumps(refusal.body).encode()
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
        self.send_response(status)
        for key, value in {k: v for k, v in headers.items() if v}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = _do

    def log_message(self, *_: object) -> None:
        """Requests are kept in `Hub.requests` instead."""
