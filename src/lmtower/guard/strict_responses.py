"""Strict tool calls in OpenAI responses: a function call's events wait until its arguments are known to be good."""

from __future__ import annotations

from typing import Any

import msgspec

from lmtower.guard.judge import Call, Judgement, Verdict
from lmtower.guard.leaks import MARKERS
from lmtower.guard.strict import Strict, rejected
from lmtower.wire import sse
from lmtower.wire.answers import objects, read_object
from lmtower.wire.faults import Fault
from lmtower.wire.responses import ResponsesReply
from lmtower.wire.stops import Cut
from lmtower.wire.usage import Usage

_encode = msgspec.json.Encoder().encode
_Event = dict[str, Any]
_OF_A_MESSAGE = ("response.output_item.", "response.content_part.", "response.output_text.")
_PLACE = ("item_id", "output_index", "content_index", "logprobs")
_HELD = ("response.function_call_arguments.delta", "response.function_call_arguments.done")


class _Open:
    """A message item whose first events wait for text that is certainly no call."""

    __slots__ = ("closed", "leak", "said", "waiting")

    def __init__(self) -> None:
        self.waiting: list[tuple[str, _Event]] = []
        self.leak = Cut(MARKERS)
        self.said = ""
        """The text that has gone out."""
        self.closed = False
        """Its text is complete, and what was held back of it has been decided upon."""


class StrictResponsesReply(ResponsesReply):
    """``/v1/responses`` under ``tools: strict``."""

    __slots__ = ("_dropped", "_end", "_index", "_items", "_leaked", "_open", "again", "strict")

    def __init__(self, served: str, asked: str, request_id: str, own: dict[str, Any], strict: Strict) -> None:
        super().__init__(served, asked, request_id, own)
        self.strict = strict
        self.again = None
        self._items: list[_Event] = []
        """Complete function-call items that have not gone out."""
        self._index = 0
        self._open: _Open | None = None
        self._leaked: list[Call] = []
        """Calls that leaked into the text; they count when the engine found none."""
        self._dropped = 0
        """Items that were nothing but such calls and never went out."""
        self._end: _Event | None = None
        """The response (not streamed) or the final event that waits for the second answer."""

    # -- not streamed ----------------------------------------------------------------------------------------

    def body(self, data: bytes) -> bytes:
        """The response with good calls only; empty when a second request is needed first."""
        response = read_object(super().body(data))
        items = _calls_in(response)
        judgement = self._judge(items, response, self._take_leaks(response))
        if judgement.verdict is Verdict.RETRY:
            self.again, self._end, self.complete = self.strict.again(), response, False
            return b""
        return _encode(_with_items(response, _items(judgement.calls, items)))

    def _take_leaks(self, response: _Event) -> list[Call]:
        """The calls that leaked into the texts of a response, which loses them."""
        found: list[Call] = []
        kept: list[_Event] = []
        for item in objects(response, "output"):
            parts = objects(item, "content") if item.get("type") == "message" else []
            before = len(found)
            for part in parts:
                if isinstance(part.get("text"), str):
                    part["text"], calls = self.strict.without_leaks(part["text"])
                    found += calls
            if len(found) == before or any(part.get("text") for part in parts):
                kept.append(item)
        response["output"] = kept
        return found

    def _judge(self, items: list[_Event], response: _Event, leaked: list[Call]) -> Judgement:
        calls = [
            Call(str(item.get("name", "")), str(item.get("arguments", "")), item.get("call_id") or self.strict.new_id())
            for item in items
        ] or leaked
        judgement = self.strict.judge(calls, cut=response.get("status") == "incomplete")
        if judgement.verdict is Verdict.REJECT:
            raise rejected(judgement)
        return judgement

    def recovered(self, status: int, body: bytes) -> bool:
        """A call that the engine could not read gets the constrained request, too."""
        self.again = self.strict.recover(status, body)
        return self.again is not None

    # -- streamed --------------------------------------------------------------------------------------------

    def relay(self, run: bytes) -> bytes:
        """Every event is read: any may belong to a call."""
        return b"".join([self._event(event) for event in sse.split(run)])

    def typed(self, kind: str, parsed: _Event) -> bytes:
        """Events of function calls are taken in; the final event lets the calls out before itself."""
        if self._dropped and isinstance(parsed.get("output_index"), int):
            parsed["output_index"] -= self._dropped
        if kind in _HELD:
            return b""
        if kind in ("response.output_item.added", "response.output_item.done"):
            item = parsed.get("item")
            if isinstance(item, dict) and item.get("type") == "function_call":
                if kind.endswith("done"):
                    self._items.append(item)
                return b""
            if isinstance(item, dict) and item.get("type") == "message" and kind.endswith("added"):
                self._open = _Open()
            elif self._open is None:
                self._index = max(self._index, int(parsed.get("output_index") or 0) + 1)
        if self._open is not None and kind.startswith(_OF_A_MESSAGE):
            return self._message(self._open, kind, parsed)
        if kind not in ("response.completed", "response.incomplete") or self.again is not None:
            return b"" if self.again is not None else super().typed(kind, parsed)
        response = self.whole(parsed.get("response") or {})
        items = self._items or _calls_in(response)
        leaked = self._take_leaks(response)
        judgement = self._judge(items, response, self._leaked or leaked)
        if judgement.verdict is Verdict.RETRY:
            self.again, self._end = self.strict.again(), {"kind": kind, **parsed}
            return b""
        return self._let_out(_items(judgement.calls, items), kind, response)

    def _message(self, message: _Open, kind: str, parsed: _Event) -> bytes:
        """One event of the open message item: text goes out as far as it is certainly no call."""
        if kind.endswith(".added"):
            if message.said:
                return self.numbered(kind, parsed)
            message.waiting.append((kind, parsed))
            return b""
        if kind == "response.output_text.delta":
            return self._told(message, message.leak.feed(str(parsed.get("delta") or "")), parsed)
        out = b"" if message.closed else self._closed(message, parsed)
        dropped = bool(self._leaked) and not message.said and bool(message.waiting)
        if kind == "response.output_item.done":
            self._open = None
            self._dropped += dropped
        if dropped:
            return b""
        for part in (parsed, parsed.get("part"), *_parts_of(parsed)):
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                part["text"] = message.said
        return out + self._begun(message) + self.numbered(kind, parsed)

    def _closed(self, message: _Open, parsed: _Event) -> bytes:
        """The end of a message's text: what was held back is a call or goes out now."""
        message.closed = True
        held = message.leak.held() if message.leak.found is not None else ""
        calls = self.strict.leaked(held) if held else []
        self._leaked += calls
        return b"" if calls else self._told(message, held or message.leak.rest(), parsed)

    def _told(self, message: _Open, text: str, parsed: _Event) -> bytes:
        if not text:
            return b""
        message.said += text
        place = {name: parsed[name] for name in _PLACE if name in parsed}
        return self._begun(message) + self.numbered("response.output_text.delta", {**place, "delta": text})

    def _begun(self, message: _Open) -> bytes:
        """The events that announced the message, if they have not gone out."""
        waiting, message.waiting = message.waiting, []
        if waiting:
            self._index = max(self._index, int(waiting[0][1].get("output_index") or 0) + 1)
        return b"".join([self.numbered(kind, parsed) for kind, parsed in waiting])

    def _let_out(self, items: list[_Event], kind: str, response: _Event) -> bytes:
        """The held calls as events, then the final event with the same items in it."""
        out: list[bytes] = []
        for index, item in enumerate(items, start=self._index):
            place = {"output_index": index, "item_id": item["id"]}
            started = {**item, "arguments": "", "status": "in_progress"}
            out.append(self.numbered("response.output_item.added", {"output_index": index, "item": started}))
            out.append(self.numbered(_HELD[0], {**place, "delta": item["arguments"]}))
            out.append(self.numbered(_HELD[1], {**place, "name": item["name"], "arguments": item["arguments"]}))
            out.append(self.numbered("response.output_item.done", {"output_index": index, "item": item}))
        self.complete = True
        out.append(self.numbered(kind, {"response": _with_items(response, items)}))
        return b"".join(out)

    def end(self) -> bytes:
        """Nothing yet when a second request is still to come."""
        return super().end() if self.again is None else b""

    # -- the second answer -----------------------------------------------------------------------------------

    def retried(self, data: bytes) -> bytes:
        """The rest of the stream, or the whole response, with the calls of the constrained answer."""
        first, self.usage = self.usage, Usage()
        keep = self._id, self._created_at
        answer = read_object(super().body(data))
        self.complete = False
        self._id, self._created_at = keep
        for name in ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"):
            setattr(self.usage, name, getattr(self.usage, name) + getattr(first, name))
        self.again = None
        items = _items(tuple(self.strict.retried(_text(answer))), [])
        held = self._end or {**answer, "output": []}
        if "kind" not in held:
            self.complete = True
            return _encode(_with_items(held, items))
        response = held.get("response") or {}
        return self._let_out(
            items, "response.completed", {**response, "status": "completed", "incomplete_details": None}
        )


def _parts_of(parsed: _Event) -> list[_Event]:
    item = parsed.get("item")
    return objects(item, "content") if isinstance(item, dict) else []


def _calls_in(response: _Event) -> list[_Event]:
    return [item for item in objects(response, "output") if item.get("type") == "function_call"]


def _items(calls: tuple[Call, ...], given: list[_Event]) -> list[_Event]:
    """Output items for good calls; what the engine said of them besides is kept."""
    found: list[_Event] = []
    for index, call in enumerate(calls):
        item = given[index] if index < len(given) else {}
        fixed = {"type": "function_call", "name": call.name, "arguments": call.arguments, "call_id": call.id}
        found.append({**item, "id": item.get("id") or f"fc_{call.id}", **fixed, "status": "completed"})
    return found


def _with_items(response: _Event, items: list[_Event]) -> _Event:
    """The response with these calls in place of its own, after everything else."""
    kept = [item for item in objects(response, "output") if item.get("type") != "function_call"]
    return {**response, "output": [*kept, *items]}


def _text(answer: _Event) -> str:
    texts: list[str] = []
    for item in answer.get("output") or ():
        if isinstance(item, dict) and item.get("type") == "message":
            texts.extend(str(part.get("text", "")) for part in item.get("content") or () if isinstance(part, dict))
    if not "".join(texts):
        raise Fault(502, "invalid_tool_call", "The model did not produce a valid tool call.", should_retry=False)
    return "".join(texts)
