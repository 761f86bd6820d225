"""Strict tool calls in Anthropic messages: a ``tool_use`` block waits until its input is known to be good."""

from __future__ import annotations

from typing import Any

import msgspec

from lmtower.guard.judge import Call, Verdict
from lmtower.guard.leaks import MARKERS
from lmtower.guard.repair import decode
from lmtower.guard.strict import Strict, rejected
from lmtower.wire import sse
from lmtower.wire.answers import read_object
from lmtower.wire.faults import Fault
from lmtower.wire.messages import MessagesReply, named
from lmtower.wire.stops import Cut
from lmtower.wire.usage import Usage

_encode = msgspec.json.Encoder().encode
_Event = dict[str, Any]


class _Open:
    """A text block whose start waits for text that is certainly no call."""

    __slots__ = ("leak", "start")

    def __init__(self, start: _Event) -> None:
        self.start: _Event | None = start
        self.leak = Cut(MARKERS)


class StrictMessagesReply(MessagesReply):
    """``/v1/messages`` under ``tools: strict``."""

    __slots__ = (
        "_after",
        "_block",
        "_calls",
        "_dropped",
        "_index",
        "_leaked",
        "_message",
        "_open",
        "_text",
        "again",
        "strict",
    )

    def __init__(self, served: str, asked: str, request_id: str, strict: Strict) -> None:
        super().__init__(served, asked, request_id)
        self.strict = strict
        self.again = None
        self._block: tuple[int, Call] | None = None
        self._text: list[str] = []
        self._calls: list[Call] = []
        self._index = 0
        """Where the held calls begin: the content index of the first of them."""
        self._after: list[_Event] = []
        self._open: _Open | None = None
        self._leaked: list[Call] = []
        """Calls that leaked into the text; they count when the engine found none."""
        self._dropped = 0
        """Blocks that were nothing but such calls and never went out."""
        self._message: _Event | None = None

    # -- not streamed ----------------------------------------------------------------------------------------

    def body(self, data: bytes) -> bytes:
        """The message with good calls only; empty when a second request is needed first."""
        message = read_object(super().body(data))
        content = message.get("content")
        blocks = content if isinstance(content, list) else []
        given = [block for block in blocks if block.get("type") == "tool_use"]
        calls = [
            Call(str(b.get("name", "")), _encode(b.get("input")).decode(), b.get("id") or self.strict.new_id())
            for b in given
        ] or self._leaks(blocks)
        judgement = self.strict.judge(calls, cut=message.get("stop_reason") == "max_tokens")
        if judgement.verdict is Verdict.REJECT:
            raise rejected(judgement)
        if judgement.verdict is Verdict.RETRY:
            self.again, self._message, self.complete = self.strict.again(), message, False
            return b""
        return _encode(_with_calls(message, list(judgement.calls)))

    def _leaks(self, blocks: list[_Event]) -> list[Call]:
        """The calls that leaked into text blocks, which lose them."""
        found: list[Call] = []
        for block in blocks:
            if block.get("type") == "text" and isinstance(block.get("text"), str):
                block["text"], calls = self.strict.without_leaks(block["text"])
                found += calls
        return found

    def recovered(self, status: int, body: bytes) -> bool:
        """A call that the engine could not read gets the constrained request, too."""
        self.again = self.strict.recover(status, body)
        return self.again is not None

    # -- streamed --------------------------------------------------------------------------------------------

    def relay(self, run: bytes) -> bytes:
        """Every event is read: any may belong to a call."""
        return b"".join([self._event(event) for event in sse.split(run)])

    def typed(self, kind: str, parsed: _Event, data: bytes) -> bytes:
        """Blocks with calls are taken in; the end of the message lets them out."""
        if self._dropped and isinstance(parsed.get("index"), int):
            parsed["index"] -= self._dropped
            data = _encode(parsed)
        if kind == "content_block_start" and _kind(parsed, "content_block") == "tool_use":
            block = parsed["content_block"]
            call = Call(str(block.get("name", "")), "", block.get("id") or self.strict.new_id())
            if not self._calls:
                self._index = int(parsed.get("index", 0))
            given = block.get("input")
            self._text = [_encode(given).decode()] if given else []
            self._block = (int(parsed.get("index", 0)), call)
            return b""
        if self._block is not None and kind == "content_block_delta":
            if _kind(parsed, "delta") == "input_json_delta":
                self._text.append(str(parsed["delta"].get("partial_json", "")))
            return b""
        if self._block is not None and kind == "content_block_stop":
            _, call = self._block
            self._calls.append(Call(call.name, "".join(self._text), call.id))
            self._block = None
            return b""
        if self._calls and kind.startswith("content_block_"):
            # text after a call (rare): it keeps its place by moving behind the calls, which have not gone out yet
            self._after.append(parsed)
            return b""
        if kind == "content_block_start":
            self._index = int(parsed.get("index", 0)) + 1
            if _kind(parsed, "content_block") == "text":
                block = parsed["content_block"]
                given, block["text"] = block.get("text"), ""
                self._open = _Open(parsed)
                return self._said(given) if given else b""
        elif self._open is not None and kind == "content_block_delta":
            if _kind(parsed, "delta") == "text_delta":
                return self._said(parsed["delta"].get("text"))
            return self._begun() + super().typed(kind, parsed, data)
        elif self._open is not None and kind == "content_block_stop":
            return self._closed(self._open, data)
        return self._ending(kind, parsed, data)

    def _said(self, text: object) -> bytes:
        """A piece of text, as far as it is certainly no call."""
        assert self._open is not None
        return self._told(self._open.leak.feed(text)) if isinstance(text, str) else b""

    def _told(self, text: str) -> bytes:
        if not text:
            return b""
        delta = {"type": "text_delta", "text": text}
        event = {"type": "content_block_delta", "index": self._index - 1, "delta": delta}
        return self._begun() + named("content_block_delta", _encode(event))

    def _begun(self) -> bytes:
        """The start of the open block, if it has not gone out."""
        assert self._open is not None
        start, self._open.start = self._open.start, None
        return b"" if start is None else named("content_block_start", _encode(start))

    def _closed(self, text: _Open, data: bytes) -> bytes:
        """The end of a text block: what was held back is a call or goes out now."""
        leaked = text.leak.held() if text.leak.found is not None else ""
        calls = self.strict.leaked(leaked) if leaked else []
        self._leaked += calls
        if calls and text.start is not None:
            self._open = None
            self._dropped += 1
            self._index -= 1
            return b""
        out = self._told("" if calls else leaked or text.leak.rest()) + self._begun()
        self._open = None
        return out + named("content_block_stop", data)

    def _ending(self, kind: str, parsed: _Event, data: bytes) -> bytes:
        if self.again is not None:
            if kind in ("message_delta", "message_stop"):
                self._take_usage(data)
                if kind == "message_delta":
                    self._message = parsed
            return b""
        if kind != "message_delta":
            return super().typed(kind, parsed, data)
        delta = parsed.get("delta") if isinstance(parsed.get("delta"), dict) else {}
        reason = delta.get("stop_reason") if isinstance(delta, dict) else None
        judgement = self.strict.judge(self._calls or self._leaked, cut=reason == "max_tokens")
        if judgement.verdict is Verdict.REJECT:
            raise rejected(judgement)
        if judgement.verdict is Verdict.RETRY:
            self._take_usage(data)
            self.again, self._message = self.strict.again(), parsed
            return b""
        if judgement.calls:
            parsed["delta"] = {**(delta or {}), "stop_reason": "tool_use", "stop_sequence": None}
        return self._blocks(list(judgement.calls)) + super().typed(kind, parsed, _encode(parsed))

    def _blocks(self, calls: list[Call]) -> bytes:
        """The held calls as events: start with an empty input, one delta, stop."""
        out: list[bytes] = []
        for index, call in enumerate(calls, start=self._index):
            block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": call.arguments}
            for kind, extra in (
                ("content_block_start", {"content_block": block}),
                ("content_block_delta", {"delta": delta}),
                ("content_block_stop", {}),
            ):
                out.append(named(kind, _encode({"type": kind, "index": index, **extra})))
        return b"".join(out) + b"".join([named(str(event["type"]), _encode(event)) for event in self._after])

    def end(self) -> bytes:
        """Nothing yet when a second request is still to come."""
        return super().end() if self.again is None else b""

    # -- the second answer -----------------------------------------------------------------------------------

    def retried(self, data: bytes) -> bytes:
        """The rest of the stream, or the whole message, with the calls of the constrained answer."""
        first, self.usage = self.usage, Usage()
        answer = read_object(super().body(_from_chat(data)))
        self.complete = False
        for name in ("input_tokens", "cached_tokens", "output_tokens"):
            setattr(self.usage, name, getattr(self.usage, name) + getattr(first, name))
        self.again = None
        calls = self.strict.retried(_text(answer))
        held = self._message or {**answer, "content": []}
        if held.get("type") == "message":
            self.complete = True
            held["usage"] = {**(held.get("usage") or {}), "output_tokens": self.usage.output_tokens}
            return _encode(_with_calls(held, calls))
        end = {**held, "type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}}
        end["usage"] = {"output_tokens": self.usage.output_tokens}
        self.complete = True
        return (
            self._blocks(calls)
            + named("message_delta", _encode(end))
            + named("message_stop", b'{"type":"message_stop"}')
        )


def _from_chat(data: bytes) -> bytes:
    """The second answer as a message, if it is a chat completion (``retry.as_chat``)."""
    answer = read_object(data)
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        return data
    used = answer.get("usage") or {}
    numbers = {"input_tokens": used.get("prompt_tokens"), "output_tokens": used.get("completion_tokens")}
    text = {"type": "text", "text": choices[0].get("message", {}).get("content") or ""}
    return _encode({"id": f"msg_{answer.get('id')}", "type": "message", "content": [text], "usage": numbers})


def _kind(parsed: _Event, field: str) -> object:
    inner = parsed.get(field)
    return inner.get("type") if isinstance(inner, dict) else None


def _with_calls(message: _Event, calls: list[Call]) -> _Event:
    content = message.get("content")
    kept = [block for block in (content if isinstance(content, list) else []) if block.get("type") != "tool_use"]
    if calls:
        kept = [block for block in kept if block.get("type") != "text" or block.get("text")]
        message["stop_reason"] = "tool_use"
    blocks = [{"type": "tool_use", "id": c.id, "name": c.name, "input": decode(c.arguments)} for c in calls]
    return {**message, "content": [*kept, *blocks]}


def _text(answer: _Event) -> str:
    content = answer.get("content")
    texts = [block.get("text") for block in (content if isinstance(content, list) else []) if isinstance(block, dict)]
    text = "".join(text for text in texts if isinstance(text, str))
    if not text:
        raise Fault(502, "invalid_tool_call", "The model did not produce a valid tool call.", should_retry=False)
    return text
