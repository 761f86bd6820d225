"""A gateway that only embeds and reranks: deterministic, counts what it is asked, can refuse, stall and be away.

``python -m tests.stores.embedding PORT LOG`` runs it as a program that logs every text it embedded, one JSON a line.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

DIMENSIONS = 64


def embed(text: str, salt: str = "") -> np.ndarray:
    """A bag of words: each word has a direction of its own, so texts with common words are near each other."""
    vector = np.full(DIMENSIONS, 1e-3, dtype=np.float32)
    for word in re.findall(r"\w+", text.lower()):
        seed = int.from_bytes(hashlib.sha256((salt + word).encode()).digest()[:8], "little")
        vector += np.random.default_rng(seed).standard_normal(DIMENSIONS).astype(np.float32)
    return vector / np.linalg.norm(vector)


class _Server(ThreadingHTTPServer):
    """A client that was killed is nothing to report."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class EmbeddingGateway:
    """Listens on a free port from ``start`` to ``stop``."""

    def __init__(self, port: int = 0, log: Path | None = None, delay_seconds: float = 0.0) -> None:
        self.texts: list[str] = []
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.salt = ""
        self.refuse: str | None = None
        self.away = False
        self.unable = False
        """Answers 501, as the gateway does for a persona whose engine cannot embed."""
        self.limited: set[str] = set()
        """Clients on whose behalf nothing is embedded now: their limits are used up."""
        self.delay_seconds = delay_seconds
        self._log = log.open("a", buffering=1) if log else None
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", port), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        if self._log:
            self._log.close()

    def answer(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self._lock:
            self.requests.append((path, headers, body))
        if self.away:
            return 503, {"error": {"message": "the engine is starting"}}
        if self.unable:
            return 501, {"error": {"message": "engine 'chat' does not embed", "code": "not_supported"}}
        if path == "/v1/rerank":
            return 200, {"results": self._rerank(body)}
        if headers.get("x-lmtower-on-behalf-of") in self.limited:
            return 429, {"error": {"message": "30 requests a day are used up", "code": "insufficient_quota"}}
        texts = body["input"]
        if self.refuse and any(self.refuse in text for text in texts):
            return 400, {"error": {"message": "this text is too long"}}
        if self.delay_seconds:
            time.sleep(self.delay_seconds)
        with self._lock:
            self.texts += texts
            if self._log:
                for text in texts:
                    self._log.write(json.dumps(text) + "\n")
        vectors = [base64.b64encode(embed(text, self.salt).astype("<f4").tobytes()).decode() for text in texts]
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        return 200, {"object": "list", "data": data, "model": body["model"], "usage": {"prompt_tokens": 1}}

    def _rerank(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Prefers short documents, which no retrieval does."""
        lengths = [len(text) for text in body["documents"]]
        order = sorted(range(len(lengths)), key=lambda i: lengths[i])
        return [{"index": i, "relevance_score": 1 / (1 + lengths[i])} for i in order]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, answer = gateway.answer(self.path, headers, body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                """Health and models, for a gateway that looks before it asks."""
                data = json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Quiet."""

        return Handler


if __name__ == "__main__":
    EmbeddingGateway(
        int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    )._server.serve_forever()
