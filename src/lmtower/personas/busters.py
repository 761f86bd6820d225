"""Finds what breaks the prefix cache of a conversation: the first thing that changed since its last request.

Theory of operation. A prefix cache helps up to the first byte that differs, so in a healthy conversation each
request begins with everything that the one before it said. Of every request a few hashes are kept: of the tools, of
the system text in blocks, of every message. The next request of the session is compared with them in the order in
which a chat template writes them, and the first difference is named with its place. Only hashes, lengths and places
are kept, never text; the number of sessions is bounded.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from lmtower.wire import top as tops
from lmtower.wire.top import Top

BLOCK_BYTES = 256
_MOST_MESSAGES = 2000
_KEPT_CHANGES = 20
_decode = msgspec.json.Decoder(list[msgspec.Raw]).decode
SPANS = ("tools", "system", "history")


@dataclass(frozen=True, slots=True)
class Change:
    """The first changed span: ``at`` is a place in bytes, ``of`` the bytes that could have been shared."""

    span: str
    place: str
    at: int
    of: int
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class _Seen:
    tools: bytes
    tools_bytes: int
    system: tuple[bytes, ...]
    system_bytes: int
    messages: tuple[tuple[bytes, int], ...]


@dataclass(slots=True)
class Session:
    """What is kept of one conversation."""

    persona: str
    requests: int = 0
    last: _Seen | None = None
    changes: deque[Change] = field(default_factory=lambda: deque(maxlen=_KEPT_CHANGES))


class Busters:
    """The latest sessions; the one that was silent longest leaves first."""

    def __init__(self, most: int = 512) -> None:
        self._most = most
        self._sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def see(self, session: str, persona: str, protocol: str, top: Top, request_id: str = "") -> Change | None:
        """Take a request in. Returns what its prefix does not share with the session's last request."""
        seen = _look(protocol, top)
        if seen is None:
            return None
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
                "changes": [asdict(change) for change in found.changes],
            }
            for (name, persona), found in self._sessions.items()
            if name == session
        ]


def _look(protocol: str, top: Top) -> _Seen | None:
    """Hashes of a request, in the order of a chat template; None when it has no conversation."""
    name = "input" if protocol == "responses" else "messages"
    raw = top.get(name)
    if raw is None or protocol not in ("chat", "messages", "responses"):
        return None
    messages = _messages(raw)
    system_name = {"messages": "system", "responses": "instructions"}.get(protocol)
    if system_name is not None:
        system = bytes(memoryview(top[system_name])) if tops.given(top, system_name) else b""
    else:
        system = bytes(messages[0]) if messages else b""
        messages = messages[1:]
    tools = bytes(memoryview(top["tools"])) if tops.given(top, "tools") else b""
    seen = tuple((_hash(message), len(message)) for message in messages)
    blocks = tuple(_hash(system[at : at + BLOCK_BYTES]) for at in range(0, len(system), BLOCK_BYTES))
    return _Seen(_hash(tools), len(tools), blocks, len(system), seen)


def _messages(raw: msgspec.Raw | bytes) -> list[msgspec.Raw]:
    """The first of the messages or input items, as raw JSON; none when the field is a text."""
    try:
        return _decode(raw)[:_MOST_MESSAGES]
    except msgspec.DecodeError:
        return []


def _hash(data: bytes | msgspec.Raw) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


def _compare(before: _Seen, now: _Seen, request_id: str) -> Change | None:
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


def _first(before: tuple[bytes, ...], now: tuple[bytes, ...]) -> int:
    pairs = zip(before, now, strict=False)
    return next((number for number, (old, new) in enumerate(pairs) if old != new), min(len(before), len(now)))
