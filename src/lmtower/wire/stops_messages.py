"""``stop_sequences`` of Anthropic messages that the gateway enforces; see ``wire.stops`` for why and how.

Text blocks are searched one by one, thinking and tool input are not. Where a stop sequence begins, the message ends:
its block is closed, ``stop_reason`` is ``stop_sequence`` and ``stop_sequence`` names it; blocks behind it are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from lmtower.wire import sse
from lmtower.wire.answers import objects, read_object
from lmtower.wire.messages import named
from lmtower.wire.reply import Reply
from lmtower.wire.stops import Cut, Stopping

_encode = msgspec.json.Encoder().encode
_Event = dict[str, Any]


class StoppingMessages(Stopping):
    """Ends a message at the first of its stop sequences."""

    __slots__ = ("_cut", "_index")

    def __init__(self, inner: Reply, stops: Sequence[str]) -> None:
        super().__init__(inner, stops)
        self._cut: Cut | None = None
        """Of the text block that is open."""
        self._index = 0
        """The place of the block that is open."""

    def body(self, data: bytes) -> bytes:
        """The whole message, cut at the first stop sequence."""
        message = read_object(data)
        if not isinstance(message.get("content"), list):
            return super().body(data)
        kept: list[_Event] = []
        for block in objects(message, "content"):
            kept.append(block)
            if block.get("type") != "text" or not isinstance(block.get("text"), str):
                continue
            cut = Cut(self._stops)
            text = cut.feed(block["text"])
            if cut.found is not None:
                block["text"] = text
                message |= {"content": kept, "stop_reason": "stop_sequence", "stop_sequence": cut.found}
                break
        return super().body(_encode(message))

    def event(self, event: bytes) -> bytes:
        """One event, with the text that is certainly before any stop sequence."""
        data = sse.data_of(event)
        if data is None or data == b"[DONE]":
            return event
        parsed = read_object(data)
        kind = parsed.get("type")
        if kind == "content_block_start":
            return self._started(parsed, event)
        if kind == "content_block_delta":
            self._here += 1
        if self._cut is None or kind not in ("content_block_delta", "content_block_stop"):
            return event
        if kind == "content_block_stop":
            rest, self._cut = self._cut.rest(), None
            return (self._told(rest) if rest else b"") + event
        delta = parsed.get("delta")
        if not isinstance(delta, dict) or not isinstance(delta.get("text"), str):
            return event
        return self._text(delta["text"])

    def _started(self, parsed: _Event, event: bytes) -> bytes:
        block = parsed.get("content_block")
        self._index = int(parsed.get("index", 0))
        if not isinstance(block, dict) or block.get("type") != "text":
            self._cut = None
            return event
        self._cut = Cut(self._stops)
        given, block["text"] = block.get("text"), ""
        return named("content_block_start", _encode(parsed)) + (self._text(given) if isinstance(given, str) else b"")

    def _text(self, piece: str) -> bytes:
        assert self._cut is not None
        text = self._cut.feed(piece)
        out = self._told(text) if text else b""
        if self._cut.found is None:
            return out
        self.enough = True
        end = {"stop_reason": "stop_sequence", "stop_sequence": self._cut.found}
        return out + b"".join(
            named(str(last["type"]), _encode(last))
            for last in (
                {"type": "content_block_stop", "index": self._index},
                {"type": "message_delta", "delta": end, "usage": {"output_tokens": self.made()}},
                {"type": "message_stop"},
            )
        )

    def _told(self, text: str) -> bytes:
        delta = {"type": "text_delta", "text": text}
        told = {"type": "content_block_delta", "index": self._index, "delta": delta}
        return named("content_block_delta", _encode(told))
