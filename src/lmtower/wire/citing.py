"""``file_search`` that the gateway runs itself: the request without the tool, the answer with its citations.

Theory of operation. Passages were found before the engine is called and stand behind the client's own text, in its
last message: everything before stays what it was, so the engine's prefix cache does. The model marks what it took
from where as ``[1]``. On the way back ``CitingReply`` stands behind the protocol's own reply and turns marks into the
protocol's annotations: chat gets ``annotations`` on the message (before the finish reason in a stream), responses get
a ``file_search_call`` item in front, ``output_text.annotation.added`` events and annotations in every later copy of
the text. Text itself is never changed and never held back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from lmtower.wire import sse
from lmtower.wire.answers import objects, read_object
from lmtower.wire.reply import Reply
from lmtower.wire.top import Top, encoded, value
from lmtower.wire.wrapping import Wrapping

Json = dict[str, Any]
_encode = msgspec.json.Encoder().encode
_MARK = re.compile(r"\[(\d{1,2}(?:\s*,\s*\d{1,2})*)\]")
_SEARCH = ("in_progress", "searching", "completed")


class Wanted(NamedTuple):
    """What a request wants searched. ``options`` are the tool's own (``max_num_results``, ``filters``, …)."""

    store_ids: tuple[str, ...]
    options: Json


class Found(NamedTuple):
    """What was found. ``hits`` in order, the first is ``[1]``; ``include``: the client wants them in the answer."""

    query: str
    hits: Sequence[Mapping[str, Any]]
    include: bool


# -- the request ---------------------------------------------------------------------------------------------


def take_tool(top: Top) -> Wanted | None:
    """Remove ``file_search`` tools, which no engine knows, and say what they asked for. None without one."""
    raw = top.get("tools")
    if raw is None or b"file_search" not in bytes(memoryview(raw)):
        return None
    tools = value(top, "tools")
    if not isinstance(tools, list):
        return None
    asked = [tool for tool in tools if isinstance(tool, dict) and tool.get("type") == "file_search"]
    if not asked:
        return None
    kept = [tool for tool in tools if tool not in asked]
    if kept:
        top["tools"] = encoded(kept)
    else:
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            top.pop(name, None)
    ids = [one for tool in asked for one in tool.get("vector_store_ids") or () if isinstance(one, str)]
    options = {k: asked[0][k] for k in ("max_num_results", "filters", "ranking_options") if asked[0].get(k) is not None}
    return Wanted(tuple(ids), options)


def question(top: Top, field: str) -> str:
    """The text of the last message of the user; ``""`` when there is none."""
    given = value(top, field)
    if isinstance(given, str):
        return given
    for item in reversed(given if isinstance(given, list) else []):
        if isinstance(item, dict) and item.get("role") == "user":
            content = item.get("content")
            if isinstance(content, str):
                return content
            parts = content if isinstance(content, list) else []
            return "\n".join(str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part)
    return ""


def add_passages(top: Top, field: str, passages: str) -> None:
    """Put passages behind the last message of the user. All other messages keep their bytes."""
    raw = top.get(field)
    if raw is None:
        return
    if bytes(memoryview(raw)[:1]) == b'"':
        top[field] = encoded(f"{value(top, field)}\n\n{passages}")
        return
    raws = msgspec.json.decode(raw, type=list[msgspec.Raw])
    for place in range(len(raws) - 1, -1, -1):
        item = msgspec.json.decode(raws[place])
        if not isinstance(item, dict) or item.get("role") != "user":
            continue
        content = item.get("content")
        if isinstance(content, list):
            kind = "input_text" if field == "input" else "text"
            item["content"] = [*content, {"type": kind, "text": passages}]
        else:
            item["content"] = f"{content}\n\n{passages}" if content else passages
        raws[place] = encoded(item)
        break
    top[field] = encoded(raws)


# -- annotations ---------------------------------------------------------------------------------------------


def marks(answer: str, hits: Sequence[Mapping[str, Any]]) -> list[tuple[int, int, int]]:
    """``(hit, start, end)`` of every number in brackets that stands for a hit; ``hit`` counts from 0."""
    return [
        (int(number) - 1, match.start(), match.end())
        for match in _MARK.finditer(answer)
        for number in match[1].split(",")
        if 1 <= int(number) <= len(hits)
    ]


def responses_annotations(answer: str, hits: Sequence[Mapping[str, Any]]) -> list[Json]:
    """``file_citation`` annotations of an ``output_text`` part of /v1/responses."""
    return [
        {"type": "file_citation", "index": end, "file_id": hits[hit]["file_id"], "filename": hits[hit]["filename"]}
        for hit, _, end in marks(answer, hits)
    ]


def chat_annotations(answer: str, hits: Sequence[Mapping[str, Any]]) -> list[Json]:
    """Annotations of a chat message. Chat knows only ``url_citation``: the URL is the file's content here."""
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": start,
                "end_index": end,
                "title": hits[hit]["filename"],
                "url": f"/v1/files/{hits[hit]['file_id']}/content",
            },
        }
        for hit, start, end in marks(answer, hits)
    ]


def search_call(identity: str, found: Found) -> Json:
    """The ``file_search_call`` output item of /v1/responses; results only when the client asked to include them."""
    results = [
        {
            "file_id": hit["file_id"],
            "filename": hit["filename"],
            "score": hit["score"],
            "attributes": hit["attributes"],
            "text": "\n".join(str(part["text"]) for part in hit["content"]),
        }
        for hit in found.hits
    ]
    item: Json = {"id": identity, "type": "file_search_call", "status": "completed", "queries": [found.query]}
    return item | {"results": results if found.include else None}


# -- the answer ----------------------------------------------------------------------------------------------


class CitingReply(Wrapping):
    """Stands behind another reply and adds citations to what it sends."""

    __slots__ = ("_found", "_identity", "_sequence", "_texts")

    def __init__(self, inner: Reply, found: Found) -> None:
        super().__init__(inner)
        self._found = found
        self._identity = f"fs_{inner.request_id}"
        self._texts: dict[Any, str] = {}
        self._sequence = -1

    def changed(self, out: bytes, whole: bool) -> bytes:
        """The answer with its citations; the events of responses numbered anew."""
        if whole:
            return self._cite_body(out)
        change = self._responses_event if self.dialect == "responses" else self._chat_event
        return b"".join([change(event) for event in sse.split(out)])

    def _cite_body(self, out: bytes) -> bytes:
        answer = read_object(out)
        if self.dialect == "responses":
            return _encode(self._response(answer))
        for choice in objects(answer, "choices"):
            message = choice.get("message")
            if isinstance(message, dict) and isinstance(message.get("content"), str):
                found = chat_annotations(message["content"], self._found.hits)
                if found:
                    message["annotations"] = found
        return _encode(answer)

    def _chat_event(self, event: bytes) -> bytes:
        data = sse.data_of(event) if event.startswith(b"data: {") else None
        if data is None:
            return event
        chunk = read_object(data)
        before = b""
        for choice in objects(chunk, "choices"):
            number = choice.get("index", 0)
            text = (choice.get("delta") or {}).get("content")
            if text:
                self._texts[number] = self._texts.get(number, "") + text
            if choice.get("finish_reason") is not None:
                found = chat_annotations(self._texts.pop(number, ""), self._found.hits)
                if found:
                    delta = {"index": number, "delta": {"annotations": found}, "finish_reason": None}
                    before += b"data: " + _encode({**chunk, "choices": [delta]}) + b"\n\n"
        return before + event

    def _responses_event(self, event: bytes) -> bytes:
        data = sse.data_of(event)
        if data is None:
            return event
        parsed = read_object(data)
        kind = str(parsed.get("type") or sse.name_of(event).decode())
        if isinstance(parsed.get("output_index"), int):
            parsed["output_index"] += 1  # the search's own item is the first
        if isinstance(parsed.get("response"), dict) and kind.removeprefix("response.") in ("completed", "incomplete"):
            parsed["response"] = self._response(parsed["response"])
        if isinstance(parsed.get("part"), dict):
            self._annotate(parsed["part"])
        if isinstance(parsed.get("item"), dict):
            for part in parsed["item"].get("content") or ():
                self._annotate(part)
        out = self._numbered(kind, parsed)
        if kind == "response.created":
            out += self._search_events()
        if kind == "response.output_text.done":
            place: Json = {k: parsed[k] for k in ("item_id", "output_index", "content_index") if k in parsed}
            for number, found in enumerate(responses_annotations(str(parsed.get("text", "")), self._found.hits)):
                added: Json = {**place, "annotation_index": number, "annotation": found}
                out += self._numbered("response.output_text.annotation.added", added)
        return out

    def _search_events(self) -> bytes:
        item = search_call(self._identity, self._found)
        begun = {**item, "status": "in_progress", "results": None}
        out = self._numbered("response.output_item.added", {"output_index": 0, "item": begun})
        for state in _SEARCH:
            out += self._numbered(f"response.file_search_call.{state}", {"output_index": 0, "item_id": self._identity})
        return out + self._numbered("response.output_item.done", {"output_index": 0, "item": item})

    def _response(self, response: Json) -> Json:
        for item in objects(response, "output"):
            for part in item.get("content") or () if isinstance(item, dict) else ():
                self._annotate(part)
        response["output"] = [search_call(self._identity, self._found), *objects(response, "output")]
        return response

    def _annotate(self, part: Any) -> None:
        if isinstance(part, dict) and part.get("type") == "output_text" and isinstance(part.get("text"), str):
            part["annotations"] = responses_annotations(part["text"], self._found.hits)

    def _numbered(self, kind: str, parsed: Json) -> bytes:
        self._sequence += 1
        body = _encode({**parsed, "type": kind, "sequence_number": self._sequence})
        return b"event: " + kind.encode() + b"\ndata: " + body + b"\n\n"
