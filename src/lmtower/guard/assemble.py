"""Tool deltas of a streamed chat answer, held until the calls are complete, then emitted well-formed.

Text deltas never wait for this: the reply takes the ``tool_calls`` out of each delta and puts them here. At the
end the calls are judged, and what may go out is emitted as two deltas per call: index, id, type and name first,
then the arguments. Neither ever shares a chunk with ``finish_reason`` (Home Assistant loses the call otherwise).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from lmtower.guard.judge import Call


@dataclass(slots=True)
class _Pending:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class Assembler:
    """Collects the tool deltas of one choice."""

    def __init__(self) -> None:
        self._pending: dict[int, _Pending] = {}

    def __bool__(self) -> bool:
        return bool(self._pending)

    def add(self, deltas: object) -> None:
        """Take one delta's ``tool_calls``. Engines leave ``index`` off, or start a call by a new id: both work."""
        for delta in deltas if isinstance(deltas, list) else []:
            if not isinstance(delta, dict):
                continue
            pending = self._place(delta)
            function = delta.get("function")
            if not isinstance(function, dict):
                function = {}
            if isinstance(delta.get("id"), str) and not pending.id:
                pending.id = delta["id"]
            if isinstance(function.get("name"), str) and not pending.name:
                pending.name = function["name"]
            if isinstance(function.get("arguments"), str):
                pending.arguments.append(function["arguments"])

    def _place(self, delta: dict[str, Any]) -> _Pending:
        index = delta.get("index")
        if not isinstance(index, int):
            last = max(self._pending, default=-1)
            fresh = last < 0 or (delta.get("id") and delta["id"] != self._pending[last].id)
            index = last + 1 if fresh else last
        return self._pending.setdefault(index, _Pending())

    def calls(self, new_id: Callable[[], str]) -> list[Call]:
        """The complete calls in order; every one has an id of its own."""
        found: list[Call] = []
        seen: set[str] = set()
        for _, pending in sorted(self._pending.items()):
            call_id = pending.id if pending.id and pending.id not in seen else new_id()
            seen.add(call_id)
            found.append(Call(pending.name, "".join(pending.arguments), call_id))
        return found


def deltas(calls: Iterable[Call]) -> list[dict[str, Any]]:
    """Chat deltas for these calls: name first, arguments next, one call after the other."""
    found: list[dict[str, Any]] = []
    for index, call in enumerate(calls):
        head = {"index": index, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        found.append({"tool_calls": [head]})
        found.append({"tool_calls": [{"index": index, "function": {"arguments": call.arguments}}]})
    return found


def message_calls(calls: Iterable[Call]) -> list[dict[str, Any]]:
    """The same calls for an answer that is not streamed."""
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]
