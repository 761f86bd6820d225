"""A small Hugging Face hub for tests: one model of a few files, as huggingface_hub asks for them."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0" * 39 + "1"
FILES = {"config.json": b"{}", "model.safetensors": b"w" * 300_000}


class Hub(BaseHTTPRequestHandler):
    """``tests/tiny`` exists; every other repository does not."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """Metadata of a file."""
        self._file(send=False)

    def do_GET(self) -> None:
        """A model's list of files, or a file."""
        if self.path.startswith("/api/models/tests/tiny/tree/"):
            rows = [{"type": "file", "path": name, "size": len(data), "oid": COMMIT} for name, data in FILES.items()]
            self._reply(200, json.dumps(rows).encode())
        elif self.path.startswith("/api/models/tests/tiny"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in FILES.items()]
            self._reply(200, json.dumps({"id": "tests/tiny", "sha": COMMIT, "siblings": siblings}).encode())
        elif self.path.startswith("/tests/tiny/resolve/"):
            self._file(send=True)
        else:
            self._reply(404, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"})

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _file(self, *, send: bool) -> None:
        data = FILES.get(self.path.rsplit("/", 1)[-1].split("?")[0])
        if data is None:
            self._reply(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{len(data):040d}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        self._reply(200, data, headers, send=send)

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, send: bool = True) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send:
            self.wfile.write(body)


def serve() -> ThreadingHTTPServer:
    """A hub on a free port; the caller runs and closes it."""
    return ThreadingHTTPServer(("127.0.0.1", 0), Hub)
