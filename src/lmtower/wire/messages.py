"""Anthropic messages: where the persona's prompt goes in, what is dropped, and the way back.

Claude Code puts an attribution block (``x-anthropic-billing-header: …``) before its system prompt. It differs
between conversations, so it would keep every conversation from sharing the prefix of the next: it is dropped.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from lmtower.wire import sse
from lmtower.wire.answers import read_object
from lmtower.wire.engine_faults import from_stream
from lmtower.wire.faults import Fault
from lmtower.wire.reply import Reply
from lmtower.wire.usage import Usage

BILLING = b"x-anthropic-billing-header"
_BILLING_BLOCK = re.compile(rb'"text"\s*:\s*"' + BILLING)
_BILLING_LINE = re.compile(r"\Ax-anthropic-billing-header[^\n]*\n*")
_PING = b'event: ping\ndata: {"type": "ping"}\n\n'
_STOP_REASONS = frozenset(
    (
        "end_turn",
        "max_tokens",
        "stop_sequence",
        "tool_use",
        "pause_turn",
        "refusal",
        "model_context_window_exceeded",
    )
)
_OPENAI_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_encode = msgspec.json.Encoder().encode


def merge_system(system: bytes | None, prompt: str | None) -> bytes | None:
    """The ``system`` field with the persona's prompt first and without the attribution block; None: no field.

    A client's string stays a string, its blocks stay blocks with their own bytes (``cache_control`` included).
    Raises Fault(400) when system is neither.
    """
    if system is None or system.strip() == b"null":
        return None if prompt is None else _encode(prompt)
    if system.lstrip()[:1] == b'"':
        text = _BILLING_LINE.sub("", _decode(system))
        if prompt is None:
            return system if BILLING not in system else (_encode(text) if text else None)
        return _encode(f"{prompt}\n\n{text}" if text else prompt)
    if system.lstrip()[:1] != b"[":
        raise Fault(400, "invalid_type", "The field 'system' must be a string or a list of blocks.", param="system")
    blocks = [bytes(raw) for raw in msgspec.json.decode(system, type=list[msgspec.Raw])]
    kept = [block for block in blocks if not _BILLING_BLOCK.search(block)]
    if prompt is None:
        return system if len(kept) == len(blocks) else _array(kept)
    # engines join blocks without anything between them
    first = _encode({"type": "text", "text": f"{prompt}\n\n" if kept else prompt})
    return _array([first, *kept])


def drop_billing(messages: bytes) -> bytes:
    """Messages without attribution blocks in ``role: system`` entries; the same bytes when there are none."""
    if BILLING not in messages:
        return messages
    kept: list[bytes] = []
    changed = False
    for raw in msgspec.json.decode(messages, type=list[msgspec.Raw]):
        view = bytes(raw)
        message: Any = _decode(view) if BILLING in view else None
        if not isinstance(message, dict) or message.get("role") != "system":
            kept.append(view)
            continue
        content = message.get("content")
        changed = True
        if isinstance(content, str):
            message["content"] = _BILLING_LINE.sub("", content)
        elif isinstance(content, list):
            message["content"] = [block for block in content if not _is_billing(block)]
        if message["content"]:
            kept.append(_encode(message))
    return _array(kept) if changed else messages


def _is_billing(block: object) -> bool:
    return isinstance(block, dict) and str(block.get("text", "")).startswith(BILLING.decode())


def _array(parts: list[bytes]) -> bytes:
    return b"[" + b",".join(parts) + b"]"


def _decode(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Fault(400, "invalid_json", "The request holds broken JSON.") from None


class _EngineUsage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    def into(self, usage: Usage) -> None:
        """Anthropic counts cached tokens apart from ``input_tokens``; the ledger's input tokens hold both."""
        cached = self.cache_read_input_tokens or 0
        total = (self.input_tokens or 0) + cached + (self.cache_creation_input_tokens or 0)
        usage.known = True
        if total:
            usage.input_tokens, usage.cached_tokens = total, cached
        if self.output_tokens:
            usage.output_tokens = self.output_tokens


class _Message(msgspec.Struct):
    usage: _EngineUsage | None = None


class _Event(msgspec.Struct):
    message: _Message | None = None
    usage: _EngineUsage | None = None


_events = msgspec.json.Decoder(_Event)


class MessagesReply(Reply):
    """``/v1/messages``, streamed or not."""

    __slots__ = ()

    dialect = "anthropic"
    keepalive = _PING

    def body(self, data: bytes) -> bytes:
        """The message with the asked name, the fields that SDKs require, and usage that names the cache."""
        message = read_object(data)
        if message.get("type") == "error":
            raise from_stream(data)
        self._take_usage(data)
        self.complete = True
        message["model"] = self.asked
        message.setdefault("type", "message")
        message.setdefault("role", "assistant")
        _say_why(message)
        message["usage"] = _whole_usage(message.get("usage"))
        return _encode(message)

    def relay(self, run: bytes) -> bytes:
        """Text goes out as it came; the few events around it are put right one by one."""
        if self.complete:
            return b""  # nothing may follow the end
        if not _needs_care(run):
            self.events += run.count(b"content_block_delta\n")
            return run
        return b"".join([self._event(event) for event in sse.split(run)])

    def _event(self, event: bytes) -> bytes:
        data = sse.data_of(event)
        if data is None or self.complete:
            return b""  # a comment, or something after the end
        if data == b"[DONE]":
            return b""
        parsed = read_object(data)
        kind = parsed.get("type")
        if kind == "error" or (kind is None and parsed.get("error") is not None):
            raise from_stream(data)
        if kind == "content_block_delta":
            self.events += 1
        return self.typed(str(kind), parsed, data)

    def typed(self, kind: str, parsed: dict[str, Any], data: bytes) -> bytes:
        """One decoded event -> bytes to send. The guard overrides this to hold tool calls."""
        if kind == "message_start":
            self._take_usage(data)
            message = parsed.get("message")
            if isinstance(message, dict):
                message["model"] = self.asked
                message.setdefault("type", "message")
                message.setdefault("role", "assistant")
                message.setdefault("content", [])
                message["usage"] = _whole_usage(message.get("usage"))
        elif kind == "message_delta":
            self._take_usage(data)
            delta = parsed.get("delta")
            if isinstance(delta, dict):
                _say_why(delta)
            parsed["usage"] = _whole_usage(parsed.get("usage"))
        elif kind == "message_stop":
            self.complete = True
        else:
            return named(kind, data)
        return named(kind, _encode(parsed))

    def _take_usage(self, data: bytes) -> None:
        try:
            found = _events.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        for numbers in (found.message.usage if found.message else None, found.usage):
            if numbers is not None:
                numbers.into(self.usage)


class CountReply(Reply):
    """``/v1/messages/count_tokens``: one number."""

    __slots__ = ()

    dialect = "anthropic"

    def body(self, data: bytes) -> bytes:
        """The count alone."""
        found = read_object(data).get("input_tokens")
        if not isinstance(found, int):
            raise Fault(502, "engine_error", "The engine's answer holds no token count.")
        self.complete = True
        return _encode({"input_tokens": found})


def named(kind: str, data: bytes) -> bytes:
    """An event with its ``event:`` line: the SDK's decoder drops events without one."""
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def _say_why(ended: dict[str, Any]) -> None:
    """Put the protocol's stop reason in. Engines have been seen to put OpenAI's words there, and llama.cpp names a stop
    sequence beside ``end_turn``.
    """
    reason, sequence = ended.get("stop_reason"), ended.setdefault("stop_sequence", None)
    if reason is not None and reason not in _STOP_REASONS:
        reason = _OPENAI_REASONS.get(str(reason), "end_turn")
    if reason == "end_turn" and sequence:
        reason = "stop_sequence"
    ended["stop_reason"] = reason


def _whole_usage(usage: object) -> dict[str, Any]:
    numbers = usage if isinstance(usage, dict) else {}
    return {
        **numbers,
        "input_tokens": numbers.get("input_tokens") or 0,
        "cache_creation_input_tokens": numbers.get("cache_creation_input_tokens") or 0,
        "cache_read_input_tokens": numbers.get("cache_read_input_tokens") or 0,
        "output_tokens": numbers.get("output_tokens") or 0,
    }


def _needs_care(run: bytes) -> bool:
    return (
        b"message_" in run
        or b'"error"' in run
        or b"tool_use" in run
        or b"input_json" in run
        or b"[DONE]" in run
        or b"\n:" in run
        or run.startswith((b":", b"data:"))
        or b"\n\ndata:" in run
    )
