"""A server on loopback that answers the calls of the Hugging Face Hub that pushing and downloading a policy make."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_a-token-that-nobody-may-see"


@dataclass
class Hub:
    """Repositories by name: whether they are private, and their commits, each with all its files.

    address: of the server. requests: method, path and whether the token was sent, of each.
    """

    address: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    requests: list[tuple[str, str, bool]] = field(default_factory=list)

    def files(self, name: str, revision: str) -> dict[str, bytes] | None:
        """The files of a commit. revision: main for the newest."""
        commits = self.commits.get(name)
        if not commits:
            return None
        return commits[list(commits)[-1]] if revision == "main" else commits.get(revision)

    def commit_of(self, name: str, revision: str) -> str:
        return list(self.commits[name])[-1] if revision == "main" else revision


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def note(self) -> bool:
        """Whether the token was sent."""
        authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        self.hub.requests.append((self.command, self.path, authorised))
        return authorised

    def do_POST(self) -> None:
        authorised = self.note()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not authorised and not self.path.endswith("/validate-yaml"):
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.path.endswith("/repos/create"):
            self.create(json.loads(body))
        elif self.path.endswith("/validate-yaml"):
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": x["path"], "uploadMode": "regular", "shouldIgnore": False} for x in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path.partition("?")[0]):
            self.commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self.answer({"error": self.path}, 404)

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if name in self.hub.private:
            self.answer({"error": "exists", "url": f"{self.hub.address}/{name}"}, 409)
            return
        private = asked.get("private", asked.get("visibility") == "private")
        self.hub.private[name], self.hub.commits[name] = bool(private), {"0" * 40: {".gitattributes": b""}}
        self.answer({"url": f"{self.hub.address}/{name}", "id": name})

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.hub.files(name, "main") or {})
        files |= {x["value"]["path"]: base64.b64decode(x["value"]["content"]) for x in lines if x["key"] == "file"}
        for line in lines:
            if line["key"] == "deletedFile":
                files.pop(line["value"]["path"], None)
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.hub.commits[name][commit] = files
        address = f"{self.hub.address}/{name}/commit/{commit}"
        self.answer({"success": True, "commitUrl": address, "commitOid": commit, "hookOutput": ""})

    def do_GET(self) -> None:
        authorised, path = self.note(), self.path.partition("?")[0]
        found = re.match(r"/(?:api/models/)?([\w.-]+/[\w.-]+)(?:/(resolve|tree|revision)/([^/]+)/?(.*))?$", path)
        name, kind, revision, file = found.groups() if found else ("", None, None, "")
        visible = name in self.hub.private and (authorised or not self.hub.private[name])
        files = self.hub.files(name, revision or "main") if visible else None
        if files is None:
            code = "RevisionNotFound" if visible else "RepoNotFound"
            self.answer({"error": "not found"}, 404, X_Error_Code=code)
            return
        commit = self.hub.commit_of(name, revision or "main")
        if kind == "resolve" and file in files:
            tag = hashlib.sha1(files[file]).hexdigest()
            self.answer(files[file], ETag=f'"{tag}"', X_Repo_Commit=commit)
        elif kind == "resolve":
            self.answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")
        elif kind == "tree":
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
            self.answer(entries)
        else:
            siblings = [{"rfilename": path} for path in files]
            self.answer(
                {"id": name, "sha": commit, "private": self.hub.private[name], "tags": [], "siblings": siblings}
            )

    do_HEAD = do_GET


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """The server, while it runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
