"""Embeddings: inputs read in all their forms, batches split and rejoined, vectors in the format that was asked for.

The SDKs ask for base64 (little-endian float32) without being told to, and openai-node decodes it without looking:
whatever the engine answers, the client gets exactly the format that it asked for.
"""

from __future__ import annotations

import base64
from array import array
from collections.abc import Sequence
from sys import byteorder
from typing import Any

import msgspec

from lmtower.wire.answers import read_success
from lmtower.wire.faults import Fault
from lmtower.wire.reply import Reply
from lmtower.wire.usage import EngineUsage, Usage

MOST_INPUTS = 2048
"""OpenAI's own limit of one request; LlamaIndex asserts it."""
ENGINE_BATCH = 256
"""Inputs that one engine request carries; more are split."""
_encode = msgspec.json.Encoder().encode
Tokens = list[int]


def read_inputs(given: object) -> list[str] | list[Tokens]:
    """The inputs of a request: a string, strings, a token array or token arrays. Raises Fault(400)."""
    if given in (None, "", []):
        raise _invalid("The field 'input' must not be empty.")
    items = [given] if isinstance(given, str) or _is_tokens(given) else given
    if not isinstance(items, list):
        raise _invalid("The field 'input' must be a string, a list of strings, or a list of token ids.")
    if len(items) > MOST_INPUTS:
        raise _invalid(f"The field 'input' has {len(items)} items; at most {MOST_INPUTS} are allowed.")
    if all(isinstance(item, str) for item in items) or all(_is_tokens(item) for item in items):
        return items
    raise _invalid("The field 'input' must hold strings only, or lists of token ids only.")


def _is_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int and token >= 0 for token in value)


def _invalid(message: str) -> Fault:
    return Fault(400, "invalid_input", message, param="input")


def batches(inputs: Sequence[Any], most: int = ENGINE_BATCH) -> list[Sequence[Any]]:
    """The inputs in pieces that an engine takes, in order."""
    return [inputs[start : start + most] for start in range(0, len(inputs), most)]


class EmbeddingsReply(Reply):
    """``/v1/embeddings``. ``base64``: the client wants packed vectors; ``dimensions``: the length it asked for."""

    __slots__ = ("base64", "dimensions")

    def __init__(
        self, served: str, asked: str, request_id: str, *, base64: bool = False, dimensions: int | None = None
    ) -> None:
        super().__init__(served, asked, request_id)
        self.base64 = base64
        self.dimensions = dimensions

    def body(self, data: bytes) -> bytes:
        """One engine answer for the client."""
        return self.join([data])

    def join(self, answers: Sequence[bytes]) -> bytes:
        """The answers of all batches, in order, as one: vectors renumbered, usage added up."""
        rows: list[dict[str, Any]] = []
        for answer in answers:
            part = read_success(answer)
            data = part.get("data")
            if not isinstance(data, list):
                raise Fault(502, "engine_error", "The engine's answer holds no embeddings.")
            _add(part.get("usage"), self.usage)
            for row in sorted(data, key=lambda row: int(row.get("index", 0))):
                rows.append({"object": "embedding", "index": len(rows), "embedding": self._vector(row["embedding"])})
        self.complete = True
        used = {"prompt_tokens": self.usage.input_tokens, "total_tokens": self.usage.input_tokens}
        return _encode({"object": "list", "data": rows, "model": self.asked, "usage": used})

    def _vector(self, vector: object) -> object:
        length = len(vector) if isinstance(vector, list) else len(str(vector)) * 3 // 4 // 4
        if self.dimensions is not None and length != self.dimensions:
            raise Fault(
                400,
                "unsupported_dimensions",
                f"This model has {length} dimensions and cannot be cut to {self.dimensions}.",
                param="dimensions",
            )
        if self.base64:
            return pack(vector) if isinstance(vector, list) else vector
        return unpack(vector) if isinstance(vector, str) else vector


def pack(vector: Sequence[float]) -> str:
    """Little-endian float32, base64."""
    packed = array("f", vector)
    if byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode("ascii")


def unpack(text: str) -> list[float]:
    """The floats of a base64 vector."""
    packed = array("f", base64.b64decode(text))
    if byteorder == "big":
        packed.byteswap()
    return packed.tolist()


def _add(given: object, usage: Usage) -> None:
    if not isinstance(given, dict):
        return
    part = Usage()
    msgspec.convert(given, EngineUsage).into(part)
    usage.known = True
    usage.input_tokens += part.input_tokens
    usage.cached_tokens += part.cached_tokens
    usage.image_tokens += part.image_tokens
