"""OpenAI responses: where the persona's prompt goes in, and a stream that always ends as clients need it.

Codex takes items from ``output_item.done`` only, wants ``response.completed`` with an id as the very last event
and knows four error codes in ``response.failed``. A stream that breaks ends with ``response.failed``.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import msgspec

from lmtower.wire import sse
from lmtower.wire.answers import read_object
from lmtower.wire.engine_faults import from_stream
from lmtower.wire.faults import Fault, failed_response
from lmtower.wire.places import Places
from lmtower.wire.reply import Reply
from lmtower.wire.usage import Usage

_LAST = frozenset(("response.completed", "response.incomplete", "response.failed"))
_NUMBER = re.compile(rb'"sequence_number":\s*(-?\d+)')
_encode = msgspec.json.Encoder().encode


def merge_instructions(
    instructions: str | None, items: bytes | None, prompt: str | None
) -> tuple[str | None, bytes | None]:
    """Instructions with the persona's prompt first, and the input without the system messages at its head.

    Engines make ``instructions`` the system message; a second one (Codex sends its rules as ``developer`` items)
    breaks current chat templates, so those at the head of the input join the instructions.
    """
    texts = [text for text in (prompt, instructions) if text]
    if items is None or items.lstrip()[:1] != b"[" or not texts or b'"role"' not in items:
        return "\n\n".join(texts) or None, items
    raws = msgspec.json.decode(items, type=list[msgspec.Raw])
    taken = 0
    for raw in raws:
        text = _system_text(bytes(raw))
        if text is None:
            break
        texts.append(text)
        taken += 1
    if taken:
        items = b"[" + b",".join(bytes(raw) for raw in raws[taken:]) + b"]"
    return "\n\n".join(texts), items


def _system_text(raw: bytes) -> str | None:
    """The text of a system or developer item that holds nothing but text."""
    if b'"system"' not in raw and b'"developer"' not in raw:
        return None
    item = _decode(raw)
    if not isinstance(item, dict) or item.get("role") not in ("system", "developer"):
        return None
    content = item.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) and "text" in part for part in content):
        return None
    return "\n\n".join(str(part["text"]) for part in content)


def _decode(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Fault(400, "invalid_json", "The request holds broken JSON.") from None


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _EngineUsage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None

    def into(self, usage: Usage) -> None:
        usage.known = True
        usage.input_tokens, usage.output_tokens = self.input_tokens or 0, self.output_tokens or 0
        if self.input_tokens_details is not None:
            usage.cached_tokens = self.input_tokens_details.cached_tokens or 0
        if self.output_tokens_details is not None:
            usage.reasoning_tokens = self.output_tokens_details.reasoning_tokens or 0


class ResponsesReply(Reply):
    """``/v1/responses``, streamed or not. Remembers the response's id and time for an event of its own."""

    __slots__ = ("_created_at", "_id", "_places", "_sequence", "own")

    dialect = "responses"

    def __init__(self, served: str, asked: str, request_id: str, own: dict[str, Any] | None = None) -> None:
        super().__init__(served, asked, request_id)
        self.own: dict[str, Any] = {"instructions": None} if own is None else own
        """The client's own fields: engines echo what they were sent, and the persona's prompt must not leave."""
        self._id = f"resp_{request_id}"
        self._created_at: int | float = 0
        self._sequence = -1
        self._places = Places()

    def body(self, data: bytes) -> bytes:
        """The response with the asked name and whole usage."""
        response = read_object(data)
        if response.get("error") and "output" not in response:
            raise from_stream(data)
        self.complete = True
        return _encode(self.whole(response))

    def relay(self, run: bytes) -> bytes:
        """Deltas go out as they came; events that carry a response are put right one by one."""
        if self.complete:
            return b""  # nothing may follow the end
        if not _needs_care(run):
            numbers = _NUMBER.findall(run)
            if numbers and len(numbers) == run.count(b"\n\n"):
                self._sequence = max(self._sequence, int(numbers[-1]))
                self.events += run.count(b".delta\n")
                return run
        return b"".join([self._event(event) for event in sse.split(run)])

    def _event(self, event: bytes) -> bytes:
        data = sse.data_of(event)
        if data is None or data == b"[DONE]" or self.complete:
            return b""  # nothing may follow response.completed
        parsed = read_object(data)
        kind = parsed.get("type")
        if kind == "error" or (kind is None and parsed.get("error") is not None):
            raise from_stream(data if "error" in parsed else _encode({"error": parsed}))
        kind = str(kind or sse.name_of(event).decode())
        if kind == "response.failed":
            raise _failure(parsed)
        if kind.endswith(".delta"):
            self.events += 1
        self._places.put(kind, parsed)
        return self.typed(kind, parsed)

    def typed(self, kind: str, parsed: dict[str, Any]) -> bytes:
        """One decoded event -> bytes to send. The guard overrides this to hold tool calls."""
        response = parsed.get("response")
        if isinstance(response, dict):
            parsed["response"] = self.whole(response)
        self.complete = kind in _LAST
        return self.numbered(kind, parsed)

    def numbered(self, kind: str, parsed: dict[str, Any]) -> bytes:
        """The event with the next sequence number, whatever number it came with."""
        self._sequence += 1
        given = parsed.get("sequence_number")
        if isinstance(given, int) and given > self._sequence:
            self._sequence = given
        return (
            b"event: "
            + kind.encode()
            + b"\ndata: "
            + _encode({**parsed, "type": kind, "sequence_number": self._sequence})
            + b"\n\n"
        )

    def whole(self, response: dict[str, Any]) -> dict[str, Any]:
        """A response object with the asked name; usage read, and completed where clients need numbers."""
        if isinstance(response.get("id"), str):
            self._id = response["id"]
        else:
            response["id"] = self._id
        if isinstance(response.get("created_at"), int | float):
            self._created_at = response["created_at"]
        response["model"] = self.asked
        response.setdefault("output", [])  # llama.cpp announces a response without it, and SDKs append to it
        response.update(self.own)
        usage = response.get("usage")
        if isinstance(usage, dict):
            with suppress(msgspec.ValidationError):
                msgspec.convert(usage, _EngineUsage).into(self.usage)
            response["usage"] = _whole_usage(usage)
        return response

    def broken(self, fault: Fault) -> bytes:
        """``response.failed`` with a code that Codex knows, for the response that was begun."""
        known = {"id": self._id, "created_at": self._created_at, "model": self.asked}
        return self.numbered("response.failed", {"response": {**failed_response(fault, self.request_id), **known}})


def _failure(parsed: dict[str, Any]) -> Fault:
    response = parsed.get("response")
    error = response.get("error") if isinstance(response, dict) else None
    return from_stream(_encode({"error": error if isinstance(error, dict) else {}}))


def _whole_usage(usage: dict[str, Any]) -> dict[str, Any]:
    """Codex reads the details as integers and requires the total."""
    given, made = usage.get("input_tokens") or 0, usage.get("output_tokens") or 0
    before, after = usage.get("input_tokens_details"), usage.get("output_tokens_details")
    before, after = before if isinstance(before, dict) else {}, after if isinstance(after, dict) else {}
    return {
        **usage,
        "input_tokens": given,
        "input_tokens_details": {**before, "cached_tokens": before.get("cached_tokens") or 0},
        "output_tokens": made,
        "output_tokens_details": {**after, "reasoning_tokens": after.get("reasoning_tokens") or 0},
        "total_tokens": usage.get("total_tokens") or given + made,
    }


def _needs_care(run: bytes) -> bool:
    return (
        b'"response":' in run
        or b'"error"' in run
        or b"function_call" in run
        or b"[DONE]" in run
        or b"\n:" in run
        or run.startswith((b":", b"data:"))
        or b"\n\ndata:" in run
    )
