"""The model hub, played by a server on this machine: only small files are asked for."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.plan.shapes import config

_HEADER = json.dumps(
    {"model.embed_tokens.weight": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2 * 1024**3]}}
).encode()


class _Hub(http.server.BaseHTTPRequestHandler):
    """config.json and one safetensors file, of which a client may ask ranges."""

    files: ClassVar[dict[str, bytes]] = {
        "config.json": json.dumps(config("Qwen__Qwen3-0.6B")).encode(),
        "model.safetensors": struct.pack("<Q", len(_HEADER)) + _HEADER + bytes(4096),
    }
    asked: ClassVar[list[str]] = []

    def _answer(self, *, body: bool) -> None:
        name = self.path.rpartition("/")[2]
        data = self.files.get(name) if "/resolve/" in self.path else b"" if self.path == "/" else None
        self.asked.append(f"{self.command} {self.path}")
        if data is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        wanted = self.headers.get("Range")
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[int(first) : int(last) + 1]
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    """Address of the hub."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_hub_gives_configuration_and_headers(hub: str, tmp_path: Path) -> None:
    """A model that is nowhere else is planned from its config.json and the header of its weights."""
    program = "import sys; from lmtower.cli.app import main; sys.exit(main(['fit', 'someone/small', '--json']))"
    environ = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True, timeout=60
    )
    found = json.loads(done.stdout)
    assert (found["origin"], found["weights_basis"]) == ("the hub", "safetensors headers")
    assert found["weights_bytes"] >= 2 * 1024**3
    assert found["kv_bytes_per_request"] == 40960 * 28 * 8 * 256 * 2
