"""A hub on loopback: as much of its HTTP interface as downloading a repository asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves `files` as the repository `name`. Any other repository is unknown; `gated` refuses this one.

    downloads: the files that were fetched; tokens: the Authorization headers of who asked for the repository
    """

    def __init__(self, name: str, files: dict[str, bytes]) -> None:
        self.name = name
        self.files = files
        self.gated = False
        self.downloads: list[str] = []
        self.tokens: set[str | None] = set()
        self.url = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path without its query."""
        model = f"/api/models/{self.name}"
        if not path.startswith((model, f"/{self.name}/")):
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if path in (model, f"{model}/revision/main", f"{model}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in self.files]
            return 200, {}, json.dumps({"id": self.name, "sha": COMMIT, "siblings": siblings}).encode()
        if path.startswith(f"{model}/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
            ]
            return 200, {}, json.dumps(tree).encode()
        file = path.removeprefix(f"/{self.name}/resolve/{COMMIT}/")
        if file in self.files:
            content = self.files[file]
            return 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}, content
        return 404, {"X-Error-Code": "RevisionNotFound"}, b""

    @contextmanager
    def running(self) -> Iterator[FakeHub]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def respond(self, *, body: bool) -> None:
                path = self.path.partition("?")[0]
                if hub.name in path:
                    hub.tokens.add(self.headers["Authorization"])
                status, headers, content = hub.answer(path)
                if body and "/resolve/" in path:
                    hub.downloads.append(path.rpartition("/")[2])
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def do_GET(self) -> None:
                self.respond(body=True)

            def do_HEAD(self) -> None:
                self.respond(body=False)

            def log_message(self, format: str, *args: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.url = f"http://127.0.0.1:{server.server_port}"
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield self
            server.shutdown()
            thread.join()
