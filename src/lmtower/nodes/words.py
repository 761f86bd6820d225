"""The embedded embedding engine: WordLlama's word vectors behind ``/v1/embeddings`` and ``/v1/rerank``.

``python -m lmtower.nodes.embedded --model bundled:wordllama --port 8101`` starts it. Its 16 MB of weights come in the
wheel, so that a fresh machine has embeddings without a network or a GPU. Word vectors know no word order: enough to
try out retrieval, no more.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lmtower.errors import EngineError

MODEL = "bundled:wordllama"
DIMENSIONS = (64, 128, 256)
"""WordLlama is trained so that its vectors may be cut to these."""
_MOST_BODY = 64 * 1024**2
Embed = Callable[[Sequence[str]], list[list[float]]]
Count = Callable[[Sequence[str]], int]


class Words:
    """The model. ``embed`` gives unit vectors; ``count`` tokens. Raises EngineError without the package."""

    def __init__(self) -> None:
        spec = find_spec("wordllama")
        if spec is None or spec.origin is None:
            raise EngineError("model 'bundled:wordllama' needs the package 'wordllama': pip install 'lmtower[demo]'")
        from wordllama import WordLlama

        # tokenizer and weights lie in the package; without cache_dir it would ask the hub
        self._model: Any = WordLlama.load(cache_dir=Path(spec.origin).parent, disable_download=True)
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector per text."""
        with self._lock:
            found: list[list[float]] = self._model.embed(list(texts), norm=True).tolist()
        return found

    def count(self, texts: Sequence[str]) -> int:
        """Tokens of all texts together."""
        with self._lock:
            return sum(len(encoding.ids) for encoding in self._model.tokenizer.encode_batch(list(texts)))


def embeddings(body: dict[str, Any], embed: Embed, count: Count) -> dict[str, Any]:
    """The answer of ``/v1/embeddings``. Raises ValueError for a bad request."""
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("input must be a string or a list of strings")
    wanted = body.get("dimensions", DIMENSIONS[-1])
    if wanted not in DIMENSIONS:
        raise ValueError(f"dimensions must be one of {', '.join(map(str, DIMENSIONS))}")
    tokens = count(texts)
    rows = [
        {"object": "embedding", "index": index, "embedding": _cut(vector, wanted)}
        for index, vector in enumerate(embed(texts))
    ]
    used = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": rows, "model": body.get("model", MODEL), "usage": used}


def rerank(body: dict[str, Any], embed: Embed, count: Count) -> dict[str, Any]:
    """The answer of ``/v1/rerank``: cosine of query and document. Raises ValueError for a bad request."""
    query, documents = body.get("query"), body.get("documents")
    if not isinstance(query, str) or not isinstance(documents, list) or not documents:
        raise ValueError("query must be a string and documents a list of strings")
    if not all(isinstance(document, str) for document in documents):
        raise ValueError("documents must be strings")
    first, *vectors = embed([query, *documents])
    scores = [sum(a * b for a, b in zip(first, vector, strict=True)) for vector in vectors]
    results = [
        {"index": i, "relevance_score": score, "document": {"text": documents[i]}} for i, score in enumerate(scores)
    ]
    results.sort(key=lambda row: -float(str(row["relevance_score"])))
    tokens = count([query, *documents])
    used = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"id": "rerank", "model": body.get("model", MODEL), "usage": used, "results": results}


def _cut(vector: list[float], dimensions: int) -> list[float]:
    """The first dimensions, at unit length again."""
    if dimensions == len(vector):
        return vector
    kept = vector[:dimensions]
    length = sum(value * value for value in kept) ** 0.5 or 1.0
    return [value / length for value in kept]


def server(host: str, port: int, model: str, words: Words, key: str | None) -> ThreadingHTTPServer:
    """An HTTP server for this model, bound but not running."""
    routes = {"/v1/embeddings": embeddings, "/v1/rerank": rerank}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/health":
                self._answer(200, {"status": "ok"})
            elif self.path == "/v1/models":
                entry = {"id": model, "object": "model", "created": 0, "owned_by": "lmtower"}
                self._answer(200, {"object": "list", "data": [entry]})
            else:
                self._fail(404, "not found")

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            if length > _MOST_BODY:
                self.close_connection = True
                return self._fail(413, "the request is too large")
            raw = self.rfile.read(length)
            if key is not None and self.headers.get("authorization") != f"Bearer {key}":
                return self._fail(401, "wrong key")
            route = routes.get(self.path)
            if route is None:
                return self._fail(404, "this engine has embeddings and rerank only")
            try:
                body = json.loads(raw)
                if not isinstance(body, dict):
                    raise ValueError("the body must be a JSON object")
                return self._answer(200, route(body, words.embed, words.count))
            except ValueError as error:
                return self._fail(400, str(error))

        def _fail(self, status: int, message: str) -> None:
            self._answer(status, {"error": {"message": message, "type": "invalid_request_error", "code": status}})

        def _answer(self, status: int, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Requests are the gateway's to record."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    return Server((host, port), Handler)


def start(host: str, port: int, model: str, key_variable: str | None) -> str:
    """Serve in the background of this process. Returns the address. Raises EngineError."""
    key = os.environ.get(key_variable) if key_variable else None
    if key_variable and not key:
        raise EngineError(f"environment variable {key_variable!r} (engine key) is empty")
    try:
        running = server(host, port, model, Words(), key)
    except OSError as error:
        raise EngineError(f"cannot listen on {host}:{port}: {error}") from error
    threading.Thread(target=running.serve_forever, name="words", daemon=True).start()
    return f"http://{host}:{running.server_address[1]}"
