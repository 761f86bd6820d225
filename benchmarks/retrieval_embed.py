"""An embeddings server on WordLlama, whose weights are in its wheel: ``python -m benchmarks.retrieval_embed PORT``."""

from __future__ import annotations

import base64
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import wordllama
from safetensors import safe_open
from tokenizers import Tokenizer
from wordllama.inference import WordLlamaInference


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    model: WordLlamaInference | None = None

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert Handler.model is not None
        vectors = Handler.model.embed(body["input"], norm=True).astype("<f4")
        encoded = [base64.b64encode(vector.tobytes()).decode() for vector in vectors]
        items = [{"index": i, "embedding": text} for i, text in enumerate(encoded)]
        data = json.dumps({"object": "list", "data": items, "model": body["model"]}).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        self.wfile.write(head.encode() + data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def load() -> WordLlamaInference:
    """From the wheel alone: ``WordLlama.load`` looks for the tokenizer in a folder of another name, then downloads."""
    folder = Path(wordllama.__file__).parent
    with safe_open(folder / "weights" / "l2_supercat_256.safetensors", framework="np") as weights:
        table = weights.get_tensor("embedding.weight")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    return WordLlamaInference(table, tokenizer, binary=False)


def main(port: int) -> None:
    Handler.model = load()
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]))
