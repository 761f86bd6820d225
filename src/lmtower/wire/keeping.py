"""OpenAI responses that can be gone on from: the conversation behind an id, and a reply that keeps what it sends.

Theory of operation. No engine keeps responses in a way that can be used (vLLM keeps them for ever, llama.cpp not at
all), so the gateway does, and an engine always gets the whole conversation: the items of the earlier turns, then the
new ones. It is the same text that a client would send which keeps the conversation itself, so the engine's prefix cache
holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from lmtower.wire import sse
from lmtower.wire.answers import objects, read_object
from lmtower.wire.reply import Reply
from lmtower.wire.wrapping import Wrapping

Json = dict[str, Any]
_encode = msgspec.json.Encoder().encode
_REPLAYED = ("message", "reasoning", "function_call", "custom_tool_call")
"""Output items that engines take as input; searches and the like stay with the gateway."""
_FINAL = (b"response.completed", b"response.incomplete")


def items_of(given: bytes) -> bytes:
    """The ``input`` field as the inside of a JSON list: a text is one message of the user."""
    bare = given.strip()
    if bare[:1] == b"[":
        return bare[1:-1].strip()
    return b'{"role":"user","content":' + bare + b"}"


def output_of(response: Json) -> bytes:
    """The output of a response as input of the next turn, in the same form."""
    kept = [item for item in objects(response, "output") if item.get("type") in _REPLAYED]
    return b",".join([_encode(item) for item in kept])


def joined(parts: Iterable[bytes]) -> bytes:
    """A JSON list of the items of all parts."""
    return b"[" + b",".join([part for part in parts if part]) + b"]"


def listed(items: bytes, response_id: str) -> list[Json]:
    """Input items as ``GET /v1/responses/{id}/input_items`` gives them: each with an id and a type."""
    found: list[Json] = []
    for number, item in enumerate(msgspec.json.decode(items)):
        if not isinstance(item, dict):
            continue
        whole: Json = {"type": "message", "id": f"item_{response_id}_{number}", **item}
        if isinstance(whole.get("content"), str):
            kind = "output_text" if whole.get("role") == "assistant" else "input_text"
            whole["content"] = [{"type": kind, "text": whole["content"]}]
        found.append(whole)
    return found


def page(items: Sequence[Json], *, limit: int, after: str, newest_first: bool) -> Json:
    """One page of a cursor list."""
    ordered = list(reversed(items)) if newest_first else list(items)
    places = [number for number, item in enumerate(ordered) if item["id"] == after]
    rest = ordered[places[0] + 1 :] if places else ordered
    shown = rest[:limit]
    ends = {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
    return {"object": "list", "data": shown, **ends, "has_more": len(rest) > limit}


class KeepingReply(Wrapping):
    """Hands the finished response to ``keep``, exactly as the client gets it."""

    __slots__ = ("_keep",)

    def __init__(self, inner: Reply, keep: Callable[[Json], None]) -> None:
        super().__init__(inner)
        self._keep = keep

    def changed(self, out: bytes, whole: bool) -> bytes:
        """The same bytes."""
        if whole:
            self._keep(read_object(out))
        elif any(kind in out for kind in _FINAL):
            for event in sse.split(out):
                data = sse.data_of(event)
                if data is not None and sse.name_of(event) in _FINAL:
                    self._keep(read_object(data).get("response") or {})
        return out
