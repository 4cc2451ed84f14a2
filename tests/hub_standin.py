"""A small stand-in of the Hugging Face hub: what huggingface_hub asks for to write and read files.

A server on this machine alone, for ``HF_ENDPOINT``. Repositories are dictionaries in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_standin"


class Hub:
    """The repositories, every request, and the server's address while it runs."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *details: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, name: str, files: dict[str, bytes], *, private: bool = False) -> None:
        """A repository, or more files for it: a new commit."""
        there = self.repositories.setdefault(name, {"private": private, "commits": []})
        before = there["commits"][-1][1] if there["commits"] else {}
        after = {**before, **files}
        named = f"{name} {len(there['commits'])}"
        there["commits"].append((hashlib.sha1(named.encode()).hexdigest(), after))


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for command, pattern, function in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in command:
                function(self, body, *found.groups())
                return
        self._json(404, {"error": f"the stand-in has no {self.command} {path}"})

    def _json(self, status: int, value: Any, **headers: str) -> None:
        self._send(status, json.dumps(value).encode(), **headers)

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._json(401, {"error": "Invalid user token"})
        return False

    def _found(self, name: str) -> dict[str, Any] | None:
        there = self.hub.repositories.get(name)
        seen = there and (not there["private"] or self.headers.get("Authorization"))
        if not seen:
            code = "GatedRepo" if name.endswith("gated") else "RepoNotFound"
            status = 403 if code == "GatedRepo" else 404
            self._json(status, {"error": code}, X_Error_Code=code)
            return None
        return there

    def _create(self, body: bytes) -> None:
        if self._may_write():
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            known = name in self.hub.repositories
            if not known:
                private = asked.get("visibility") == "private" or bool(asked.get("private"))
                self.hub.repositories[name] = {"private": private, "commits": []}
            self._json(409 if known else 200, {"url": f"{self.hub.url}/{name}", "name": name})

    def _info(self, body: bytes, name: str) -> None:
        there = self._found(name)
        if there is not None:
            files = there["commits"][-1][1] if there["commits"] else {}
            self._json(
                200,
                {
                    "_id": "1", "id": name, "modelId": name, "private": there["private"],
                    "tags": [], "downloads": 0, "likes": 0,
                    "siblings": [{"rfilename": file} for file in files],
                },
            )  # fmt: skip

    def _preupload(self, body: bytes, name: str) -> None:
        if self._may_write():
            asked = json.loads(body)["files"]
            each = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in asked
            ]
            self._json(200, {"files": each})

    def _yaml(self, body: bytes) -> None:
        self._json(200, {"errors": [], "warnings": []})

    def _commit(self, body: bytes, name: str) -> None:
        if self._may_write():
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            self.hub.put(name, files)
            commit = self.hub.repositories[name]["commits"][-1][0]
            url = f"{self.hub.url}/{name}/commit/{commit}"
            self._json(200, {"commitUrl": url, "commitOid": commit, "success": True})

    def _file(self, body: bytes, name: str, revision: str, file: str) -> None:
        there = self._found(name)
        if there is None:
            return
        commits = there["commits"]
        found = [c for c in commits if c[0] == revision] if revision != "main" else commits[-1:]
        if not found:
            self._json(404, {"error": "no revision"}, X_Error_Code="RevisionNotFound")
            return
        commit, files = found[-1]
        if file not in files:
            told = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": commit}
            self._json(404, {"error": "no file"}, **told)
            return
        etag = hashlib.sha256(files[file]).hexdigest()
        self._send(200, files[file], ETag=f'"{etag}"', X_Repo_Commit=commit)


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[tuple[str, ...], str, Any]] = [
    (("POST",), "/api/repos/create", _Handler._create),
    (("POST",), "/api/validate-yaml", _Handler._yaml),
    (("POST",), rf"/api/models/{_NAME}/preupload/main", _Handler._preupload),
    (("POST",), rf"/api/models/{_NAME}/commit/main", _Handler._commit),
    (("GET",), rf"/api/models/{_NAME}", _Handler._info),
    (("GET", "HEAD"), rf"/{_NAME}/resolve/([\w.-]+)/(.+)", _Handler._file),
]
