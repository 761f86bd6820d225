"""Finds what breaks the prefix cache of a conversation: the first thing that changed since its last request.

Theory of operation. A prefix cache helps up to the first byte that differs, so in a healthy conversation each
request begins with everything that the one before it said. Of every request a few hashes are kept: of the tools, of
the system text in blocks, of every message. The next request of the session is compared with them in the order in
which a chat template writes them, and the first difference is named with its place. Only hashes, lengths and places
are kept, never text; the number of sessions is bounded.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from lmtower.wire import top as tops
from lmtower.wire.items import Text
from lmtower.wire.top import Top

BLOCK_BYTES = 256
_MOST_MESSAGES = 2000
_KEPT_CHANGES = 20
SPANS = ("tools", "system", "history")


class Change(msgspec.Struct, frozen=True):
    """The first changed span: ``at`` is a place in bytes, ``of`` the bytes that could have been shared."""

    span: str
    place: str
    at: int
    of: int
    request_id: str = ""


class Seen(msgspec.Struct, frozen=True):
    """What is kept of one request: hashes and lengths. Those of messages leave a chat's first one out: the system."""

    tools: int
    tools_bytes: int
    system: tuple[int, ...]
    system_bytes: int
    messages: tuple[tuple[int, int], ...]


class Session(msgspec.Struct):
    """What is kept of one conversation."""

    persona: str
    requests: int = 0
    last: Seen | None = None
    changes: deque[Change] = msgspec.field(default_factory=lambda: deque(maxlen=_KEPT_CHANGES))


class Busters:
    """The latest sessions; the one that was silent longest leaves first."""

    def __init__(self, most: int = 512) -> None:
        self._most = most
        self._sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def see(self, session: str, persona: str, seen: Seen, request_id: str = "") -> Change | None:
        """Take a request in. Returns what its prefix does not share with the session's last request."""
        key = (session, persona)
        found = self._sessions.setdefault(key, Session(persona))
        self._sessions.move_to_end(key)
        if len(self._sessions) > self._most:
            self._sessions.popitem(last=False)
        change = _compare(found.last, seen, request_id) if found.last is not None else None
        found.requests += 1
        found.last = seen
        if change is not None:
            found.changes.append(change)
        return change

    def report(self, session: str) -> list[dict[str, Any]]:
        """What is known of a session, one entry per persona that it used."""
        return [
            {
                "session": name,
                "persona": persona,
                "requests": found.requests,
                "changes": [msgspec.structs.asdict(change) for change in found.changes],
            }
            for (name, persona), found in self._sessions.items()
            if name == session
        ]


Message = tuple[Text, int]
"""A message's text, in which stamps may stand for long parts, and its length without them."""


class Conversation(NamedTuple):
    """The messages or input items of a request: ``new`` ones after the first ``said`` of an earlier request."""

    new: Sequence[Message]
    seen: Seen | None = None
    """What was seen of the earlier request."""
    said: int = 0


def look(protocol: str, top: Top, conversation: Conversation) -> Seen | None:
    """Hashes of a request, in the order of a chat template; None for protocols without conversations."""
    if protocol not in ("chat", "messages", "responses"):
        return None
    new, earlier, said = conversation
    tools = bytes(memoryview(top["tools"])) if tops.given(top, "tools") else b""
    system_name = {"messages": "system", "responses": "instructions"}.get(protocol)
    if system_name is not None:
        system = bytes(memoryview(top[system_name])) if tops.given(top, system_name) else b""
        return _seen(tools, system, _hashes(new) if earlier is None else earlier.messages[:said] + _hashes(new))
    if earlier is None:
        return _seen(tools, bytes(new[0][0]) if new else b"", _hashes(new[1:]))
    messages = earlier.messages[: said - 1] + _hashes(new)
    return Seen(hash(tools), len(tools), earlier.system, earlier.system_bytes, messages[:_MOST_MESSAGES])


def _seen(tools: bytes, system: bytes, messages: tuple[tuple[int, int], ...]) -> Seen:
    blocks = tuple(hash(system[at : at + BLOCK_BYTES]) for at in range(0, len(system), BLOCK_BYTES))
    return Seen(hash(tools), len(tools), blocks, len(system), messages[:_MOST_MESSAGES])


def _hashes(messages: Sequence[Message]) -> tuple[tuple[int, int], ...]:
    # Python's own hash: 64 bits that no client can foresee, in a third of the time that SHA-256 takes
    return tuple((hash(bytes(text)), length) for text, length in messages)


def _compare(before: Seen, now: Seen, request_id: str) -> Change | None:
    shared = before.tools_bytes + before.system_bytes + sum(size for _, size in before.messages)
    if before.tools != now.tools:
        return Change("tools", "tools", 0, shared, request_id)
    at = before.tools_bytes
    if before.system != now.system:
        block = _first(before.system, now.system)
        place = block * BLOCK_BYTES
        return Change("system", f"system text, byte {place} on", at + place, shared, request_id)
    at += before.system_bytes
    # the last message of the earlier request may be rewritten (an edited question), earlier ones may not
    for number, (old, new) in enumerate(zip(before.messages[:-1], now.messages, strict=False)):
        if old != new:
            return Change("history", f"message {number + 1}", at, shared, request_id)
        at += old[1]
    if len(now.messages) < len(before.messages) - 1:
        return Change("history", f"message {len(now.messages) + 1} and later are gone", at, shared, request_id)
    return None


def _first(before: tuple[int, ...], now: tuple[int, ...]) -> int:
    pairs = zip(before, now, strict=False)
    return next((number for number, (old, new) in enumerate(pairs) if old != new), min(len(before), len(now)))
