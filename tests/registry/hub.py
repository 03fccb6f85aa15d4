"""A hub of models on a local port: what huggingface_hub asks for, and nothing more."""

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "1234567890" * 4
TOKEN = "hf_thetokenofthetest"


@dataclass
class Hub:
    """Repositories with their files, and what was asked for."""

    repos: dict[str, dict[str, bytes]]
    license: str = "apache-2.0"
    fetched: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    made: list[dict[str, Any]] = field(default_factory=list)
    address: str = ""

    def info(self, repo: str) -> dict[str, Any]:
        """What the hub says of a repository."""
        siblings = [
            {"rfilename": name, "size": len(data), "blobId": "0" * 40}
            for name, data in self.repos[repo].items()
        ]
        card = {"license": self.license}
        return {
            "id": repo,
            "modelId": repo,
            "sha": COMMIT,
            "siblings": siblings,
            "cardData": card,
            "tags": [],
        }

    def commit(self, repo: str, body: bytes) -> dict[str, Any]:
        """Takes the files of a commit in."""
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                data = base64.b64decode(entry["value"]["content"])
                self.repos[repo][entry["value"]["path"]] = data
        url = f"{self.address}/{repo}/commit/{COMMIT}"
        return {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""}


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._note()
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/models/"):
            repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            known = repo in self.hub.repos and revision in ("", "main", COMMIT)
            self._json(200, self.hub.info(repo)) if known else self._missing(repo in self.hub.repos)
            return
        repo, _, rest = path.strip("/").partition("/resolve/")
        data = self.hub.repos.get(repo, {}).get(rest.partition("/")[2])
        if data is None:
            self._missing(repo in self.hub.repos)
            return
        if self.command == "GET":
            self.hub.fetched.append(rest.partition("/")[2])
        etag = hashlib.sha256(data).hexdigest()
        self._answer(200, data, {"x-repo-commit": COMMIT, "etag": f'"{etag}"'})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("transfer-encoding") == "chunked":
            body = self._chunks()
        path = urlsplit(self.path).path
        if not (self.headers.get("authorization") or "").endswith(TOKEN):
            self._json(401, {"error": "no token"})
        elif path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization', 'me')}/{wanted['name']}"
            self.hub.made.append(wanted)
            self.hub.repos.setdefault(name, {})
            self._json(200, {"url": f"{self.hub.address}/{name}"})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            told = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self._json(200, {"files": told})
        elif "/commit/" in path:
            repo = path.removeprefix("/api/models/").partition("/commit/")[0]
            self._json(200, self.hub.commit(repo, body))
        else:  # the check of the card's metadata
            self._json(200, {"errors": [], "warnings": []})

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _note(self) -> None:
        self.hub.tokens.add((self.headers.get("authorization") or "").removeprefix("Bearer "))

    def _missing(self, known: bool) -> None:
        code = "RevisionNotFound" if known else "RepoNotFound"
        self._answer(404, b"{}", {"x-error-code": code, "x-error-message": "there is none"})

    def _json(self, status: int, body: object) -> None:
        self._answer(status, json.dumps(body).encode(), {"content-type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """Serves a hub; its address is in `hub.address`."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
