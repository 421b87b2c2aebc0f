"""Stand in for the Hugging Face Hub: the part of its HTTP interface that pushing and reading models takes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LFS_SUFFIX = ".safetensors"


@dataclass
class Repository:
    """Hold the files of each commit, and what the branch main names."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])

    def files(self, revision: str) -> dict[str, bytes] | None:
        if revision == "main":
            return self.commits[-1]
        number = next((i for i in range(len(self.commits)) if commit_name(i) == revision), None)
        return None if number is None else self.commits[number]


def commit_name(number: int) -> str:
    return hashlib.sha1(str(number).encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """Hold repositories by name; whoever shows the token may do everything."""

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = token
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by SHA-256
        self.downloads: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._resolve(send=False)

    def do_GET(self) -> None:
        if self.path.startswith("/api/whoami-v2"):
            return self._json({"name": "user", "type": "user"}) if self._known() else self._error(401, "")
        if match := re.match(r"/api/models/([^/]+/[^/?]+)", self.path):
            repository = self._repository(match[1])
            if repository is None:
                return None
            return self._json(
                {"id": match[1], "sha": commit_name(len(repository.commits) - 1), "siblings": []}
            )
        return self._resolve(send=True)

    def do_PUT(self) -> None:
        content = self._body()
        name = self.path.removeprefix("/storage/")
        assert hashlib.sha256(content).hexdigest() == name
        self.server.objects[name] = content
        self._json({})

    def do_POST(self) -> None:
        body = self._body()
        if not self._known():
            return self._error(401, "RepoNotFound")
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIX) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": modes})
        if re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", self.path):
            return self._batch(json.loads(body))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            return self._commit(match[1], [json.loads(line) for line in body.splitlines()])
        return self._error(404, "")

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'user'}/{asked['name']}"
        url = {"url": f"{self.server.url}/{name}", "name": name}
        if name in self.server.repositories:
            return self._json(url | {"error": "exists"}, 409)
        self.server.repositories[name] = Repository(
            asked.get("visibility") == "private" or bool(asked.get("private"))
        )
        return self._json(url)

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = [
            each | {"actions": {"upload": {"href": f"{self.server.url}/storage/{each['oid']}"}}}
            for each in asked["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repository = self.server.repositories[name]
        files = dict(repository.commits[-1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        repository.commits.append(files)
        oid = commit_name(len(repository.commits) - 1)
        self._json({"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid})

    def _resolve(self, send: bool) -> None:
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)", self.path)
        if not match:
            return self._error(404, "")
        repository = self._repository(match[1])
        if repository is None:
            return None
        files = repository.files(match[2])
        if files is None:
            return self._error(404, "RevisionNotFound")
        number = next(i for i, commit in enumerate(repository.commits) if commit is files)
        headers = {"X-Repo-Commit": commit_name(number)}
        if match[3] not in files:
            return self._error(404, "EntryNotFound", headers)
        content = files[match[3]]
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        if send:
            self.server.downloads.append(match[3])
        return self._send(200, content, headers, send)

    def _repository(self, name: str) -> Repository | None:
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self._known()):
            self._error(401, "RepoNotFound")
            return None
        return repository

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, **(headers or {})}, self.command != "HEAD")

    def _send(self, status: int, content: bytes, headers: dict[str, str], send: bool = True) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if send:
            self.wfile.write(content)
