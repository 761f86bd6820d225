"""Errors, token counts and pooling answers as vLLM 0.32 words them. Pure: values in, values out."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.fakes.script import Request, Script, split_tokens

Json = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """One event of a stream and how many tokens it carries."""

    data: bytes
    tokens: int = 0


def compact(value: Any) -> bytes:
    """JSON as engines write it. Raises ValueError for what JSON cannot say."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sse(value: Any, event: str | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else compact(value)
    return (f"event: {event}\n".encode() if event else b"") + b"data: " + data + b"\n\n"


def error(message: str, kind: str = "BadRequestError", code: int = 400, param: str | None = None) -> Json:
    """vLLM's envelope: ``code`` is a number there, and ``type`` the name of a class."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def overflow(limit: int, asked: int) -> Json:
    return error(
        f"This model's maximum context length is {limit} tokens. However, your request has {asked} input tokens. "
        "Please reduce the length of the input messages.",
        param="input_tokens",
    )


def text_of(value: Any) -> str:
    """All text in a prompt, messages, system blocks or input items, one after the other."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " ".join(text_of(item) for item in value)
    if isinstance(value, dict):
        return " ".join(text_of(value[key]) for key in ("text", "content", "input") if key in value)
    return str(value) if isinstance(value, int) else ""


def count_tokens(body: Json) -> int:
    parts = [body.get(key, "") for key in ("system", "instructions", "messages", "prompt", "input", "input_prefix")]
    return max(1, len(text_of(parts).split()))


@dataclass(frozen=True)
class Counts:
    """Tokens of one request, in vLLM's spelling where it has one."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int | None
    image_tokens: int | None
    reasoning_tokens: int | None

    @classmethod
    def of(cls, script: Script, request: Request, output_tokens: int) -> Counts:
        given = script.input_tokens
        input_tokens = count_tokens(request.json) if given is None else given
        return cls(input_tokens, output_tokens, script.cached_tokens, script.image_tokens, script.reasoning_tokens)

    def openai(self) -> Json:
        usage: Json = {
            "prompt_tokens": self.input_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
            "completion_tokens": self.output_tokens,
            "prompt_tokens_details": None,
        }
        details = {"cached_tokens": self.cached_tokens, "image_tokens": self.image_tokens}
        if any(value is not None for value in details.values()):
            usage["prompt_tokens_details"] = {key: value for key, value in details.items() if value is not None}
        if self.reasoning_tokens is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": self.reasoning_tokens}
        return usage

    def anthropic(self) -> Json:
        usage = {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens}
        if self.cached_tokens is not None:
            usage |= {"cache_creation_input_tokens": 0, "cache_read_input_tokens": self.cached_tokens}
        return usage

    def responses(self) -> Json:
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens or 0},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens or 0},
            "total_tokens": self.input_tokens + self.output_tokens,
        }


def embeddings(script: Script, request: Request) -> Json:
    body = request.json
    inputs = body.get("input", "")
    single = isinstance(inputs, str) or (isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], int))
    items: list[Any] = [inputs] if single else inputs
    base64_form = body.get("encoding_format") == "base64"
    data = []
    for index, item in enumerate(items):
        vector = list(script.vector) if script.vector is not None else vector_of(item, body.get("dimensions") or 8)
        packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"index": index, "object": "embedding", "embedding": packed if base64_form else vector})
    tokens = Counts.of(script, request, 0).input_tokens
    return {
        "id": f"embd-{uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": body.get("model"),
        "data": data,
        "usage": {
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        },
    }


def vector_of(item: Any, size: int) -> list[float]:
    """A unit vector that depends on the text alone."""
    seed = hashlib.shake_128(json.dumps(item).encode()).digest(size)
    values = [byte / 127.5 - 1 for byte in seed]
    norm = sum(value * value for value in values) ** 0.5 or 1.0
    return [value / norm for value in values]


def rerank(script: Script, request: Request) -> Json:
    body = request.json
    words = set(str(body.get("query", "")).lower().split())
    results: list[Json] = []
    for index, document in enumerate(body.get("documents") or []):
        text = document if isinstance(document, str) else document.get("text", "")
        found = set(text.lower().split())
        score = len(words & found) / (len(words | found) or 1)
        results.append({"index": index, "document": {"text": text, "multi_modal": None}, "relevance_score": score})
    results.sort(key=lambda result: -result["relevance_score"])
    tokens = len(split_tokens(text_of([body.get("query", ""), body.get("documents", [])])))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {
        "id": f"rerank-{uuid.uuid4().hex}",
        "model": body.get("model"),
        "usage": usage,
        "results": results[: body.get("top_n") or None],
    }


def tokenize(script: Script, request: Request) -> Json:
    body = request.json
    found = split_tokens(text_of(body.get("prompt") or body.get("content") or body.get("messages") or ""))
    ids = [int.from_bytes(hashlib.sha256(token.encode()).digest()[:2], "big") for token in found]
    return {"count": len(ids), "max_model_len": 8192, "tokens": ids, "token_strs": None}


def models(names: Sequence[str], max_model_len: int) -> Json:
    card = {
        "object": "model",
        "created": 1700000000,
        "owned_by": "vllm",
        "parent": None,
        "max_model_len": max_model_len,
    }
    return {"object": "list", "data": [{"id": name, "root": name, "permission": []} | card for name in names]}
