"""The replies of autocomplete protocols whose answers are not completions: Mistral's FIM and llama.cpp's infill."""

from __future__ import annotations

from typing import Any

import msgspec

from lmtower.wire import sse, usage
from lmtower.wire.answers import read_success
from lmtower.wire.completions import CompletionReply

_encode = msgspec.json.Encoder().encode
PREWARMED = b"{}"
"""llama.vim asks for zero tokens on every keystroke to warm a cache; the prefix cache needs no such help."""


class FimReply(CompletionReply):
    """Mistral's ``/v1/fim/completions``: a text completion told as a chat completion."""

    __slots__ = ()

    def nothing(self, head: dict[str, Any]) -> dict[str, Any]:
        """A chunk of a chat without text."""
        return {**head, "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": None}]}

    def body(self, data: bytes) -> bytes:
        """The completion's text as an assistant message."""
        answer = read_success(data)
        usage.read(data, self.usage)
        self.complete = True
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": text, "tool_calls": None},
                "finish_reason": reason,
            }
            for number, text, reason in _choices(answer)
        ]
        return _encode({**self._head(answer, "chat.completion"), "choices": choices, "usage": answer.get("usage")})

    def relay(self, run: bytes) -> bytes:
        """Every text chunk as a chat delta."""
        return b"".join([self._chunk_event(event) for event in sse.split(run)])

    def _chunk_event(self, event: bytes) -> bytes:
        data = sse.data_of(event)
        if data is None:
            return event
        if data == b"[DONE]":
            self.complete = True
            return event
        chunk = read_success(data)
        usage.read(data, self.usage)
        choices = [
            {"index": number, "delta": {"role": "assistant", "content": text}, "finish_reason": reason}
            for number, text, reason in _choices(chunk)
        ]
        self.events += bool(choices)
        told: dict[str, Any] = {**self._head(chunk, "chat.completion.chunk"), "choices": choices}
        if chunk.get("usage") is not None and (self.wants_usage or choices):
            told["usage"] = chunk["usage"]
        return b"data: " + _encode(told) + b"\n\n" if choices or self.wants_usage else b""

    def _head(self, answer: dict[str, Any], kind: str) -> dict[str, Any]:
        return {"id": answer.get("id"), "object": kind, "created": answer.get("created"), "model": self.asked}


class InfillReply(CompletionReply):
    """llama.cpp's ``/infill``. ``fields`` are its ``response_fields``: paths whose values go into flat keys."""

    __slots__ = ("_text", "fields", "truncated")

    def __init__(
        self, served: str, asked: str, request_id: str, *, fields: tuple[str, ...] = (), truncated: bool = False
    ) -> None:
        super().__init__(served, asked, request_id)
        self.fields = fields
        self.truncated = truncated
        self._text = ""

    def nothing(self, head: dict[str, Any]) -> dict[str, Any]:
        """A chunk of llama.cpp's without text."""
        return {"content": "", "stop": False}

    def body(self, data: bytes) -> bytes:
        """The text under ``content``, with the counts that editors read."""
        answer = read_success(data)
        usage.read(data, self.usage)
        self.complete = True
        choices = _choices(answer)
        self._text = choices[0][1] if choices else ""
        return _encode(pick(self._whole(choices[0][2] if choices else None), self.fields))

    def relay(self, run: bytes) -> bytes:
        """Every text chunk as llama.cpp streams it; the last one carries the counts."""
        return b"".join([self._infill_event(event) for event in sse.split(run)])

    def _infill_event(self, event: bytes) -> bytes:
        data = sse.data_of(event)
        if data is None:
            return event
        if data == b"[DONE]":
            self.complete = True
            told = {**self._whole("stop"), "content": ""}
            return b"data: " + _encode(pick(told, self.fields)) + b"\n\n"
        usage.read(data, self.usage)
        texts = "".join(text for _, text, _ in _choices(read_success(data)))
        self.events += bool(texts)
        return b"data: " + _encode({"content": texts, "stop": False}) + b"\n\n" if texts else b""

    def _whole(self, reason: str | None) -> dict[str, Any]:
        return {
            "content": self._text,
            "model": self.asked,
            "stop": True,
            "stop_type": "limit" if reason == "length" else "eos",
            "truncated": self.truncated,
            "tokens_cached": self.usage.cached_tokens,
            "tokens_evaluated": self.usage.input_tokens,
            "tokens_predicted": self.usage.output_tokens,
            "timings": {
                "cache_n": self.usage.cached_tokens,
                "prompt_n": self.usage.input_tokens - self.usage.cached_tokens,
                "prompt_ms": 0.0,
                "prompt_per_token_ms": 0.0,
                "prompt_per_second": 0.0,
                "predicted_n": self.usage.output_tokens,
                "predicted_ms": 0.0,
                "predicted_per_token_ms": 0.0,
                "predicted_per_second": 0.0,
            },
        }


def pick(answer: dict[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    """The asked fields under their paths as flat keys (``timings/prompt_n``); all of them when none is asked."""
    if not fields:
        return answer
    found: dict[str, Any] = {}
    for path in fields:
        value: Any = answer
        for step in path.split("/"):
            value = value.get(step) if isinstance(value, dict) else None
        if value is not None:
            found[path] = value
    return found


def _choices(answer: dict[str, Any]) -> list[tuple[int, str, str | None]]:
    """(index, text, finish reason) of every choice."""
    given = answer.get("choices")
    return [
        (choice.get("index", 0), choice.get("text") or "", choice.get("finish_reason"))
        for choice in (given if isinstance(given, list) else [])
        if isinstance(choice, dict)
    ]
