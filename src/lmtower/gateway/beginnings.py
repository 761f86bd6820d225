"""What earlier requests of a conversation said, so that only what is new is read of the next one.

Theory of operation
-------------------
An agent sends its whole conversation again with every step: a megabyte of which a few kilobytes are new. A body that
was read and found plain (no tool call to mend, no media) is kept for a while. When the next body of the same client
begins with the same bytes up to the end of a message, these messages need not be read again: comparing a megabyte
takes a twentieth of the time. Everything before that place was valid then, so it is valid now, and what follows is
read as the rest of the same list (``wire.abridged``).

Many clients change the end of their last request (a reminder behind the last message, a mark for the cache), so of
every body the places before its last messages are known as well. A place counts only if what lies between it and the
next one is one JSON value: then it is between two elements of this list, and not deeper inside.
"""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from typing import NamedTuple

import msgspec

from lmtower.personas.busters import Seen
from lmtower.wire import scan
from lmtower.wire import top as tops
from lmtower.wire.abridged import LEAST_BYTES, Abridged, Cut, Marks, split
from lmtower.wire.conversation import Read
from lmtower.wire.items import is_plain, read

MOST_BYTES = 32 * 1024**2
_OF_ONE_START = 4
_START = 256
"""Conversations that begin with the same bytes are looked for together."""
_PLACES = 4
_LONGEST = 64 * 1024
"""Of a message behind a known place."""
_MOST_SPACE = 256
"""Before the end of a list."""
_OPENING = re.compile(rb'(\{"\w+":)( ?)')
"""Never the end of a text: behind its closing quote JSON does not go on with a letter."""
_value = msgspec.json.Decoder(msgspec.Raw)


class Beginning(NamedTuple):
    """A body that was found plain."""

    body: bytes
    start: int
    """Behind the ``[`` of the conversation."""
    places: tuple[tuple[int, int], ...]
    """(end of a message, messages up to there), the last one first."""
    seen: Seen | None
    """What ``personas.busters`` took down of it."""


class Opened(NamedTuple):
    """A body read at its top level, and what is known of its beginning: the number of messages said before."""

    abridged: Abridged
    known: Beginning | None
    said: int
    key: tuple[str, str, bytes]
    plain: bool = False
    """A short body that certainly holds no tool call and no media."""

    @property
    def field(self) -> str:
        """Where the conversation is."""
        return self.key[1]

    @property
    def large(self) -> bool:
        """Whether it is worth to be remembered."""
        return len(self.abridged.body) >= LEAST_BYTES


class Beginnings:
    """The latest bodies of all clients, bounded by their bytes."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._marks = Marks(b"m" + secrets.token_hex(12).encode())
        self.bytes = 0
        self._kept: OrderedDict[tuple[str, str, bytes], list[Beginning]] = OrderedDict()

    def open(self, client: str, field: str, body: bytes, read: Read = read) -> Opened:
        """Read a body at its top level; ``field`` is where its conversation is. Raises Fault(400).

        ``read``: how the conversation's items are read, if they can be with the top level.
        """
        if len(body) < LEAST_BYTES:
            abridged = Abridged(body, tops.split(body), self._marks)
            return Opened(abridged, None, 0, (client, field, b""), is_plain(body))
        key = (client, field, body[:_START])
        for known in self._kept.get(key, ()):
            for end, said in known.places:
                if body.startswith(memoryview(known.body)[:end]):
                    abridged = split(body, self._marks, Cut(known.start, end, False), field=field, read=read)
                    if abridged.begins(field):
                        return Opened(abridged, known, said, key)
                    break
        return Opened(split(body, self._marks, field=field, read=read), None, 0, key)

    def keep(self, opened: Opened, elements: int, seen: Seen | None) -> None:
        """Remember a plain body; ``elements`` is how many its conversation has as it was opened."""
        body = opened.abridged.body
        found = _list_in(opened) if opened.large else None
        if found is None:
            return
        begin, end = found
        messages = opened.said + elements - 1 if opened.known is not None else elements
        self._drop(opened.key, opened.known)
        beginnings = self._kept.setdefault(opened.key, [])
        beginnings.insert(0, Beginning(body, begin, tuple(_places(body, begin, end, messages)), seen))
        self._kept.move_to_end(opened.key)
        self.bytes += len(body)
        if len(beginnings) > _OF_ONE_START:
            self._drop(opened.key, beginnings[-1])
        while self.bytes > self._most:
            oldest = next(iter(self._kept))
            self._drop(oldest, self._kept[oldest][-1])

    def _drop(self, key: tuple[str, str, bytes], beginning: Beginning | None) -> None:
        beginnings = self._kept.get(key, [])
        for number, kept in enumerate(beginnings):
            if kept is beginning:
                del beginnings[number]
                self.bytes -= len(kept.body)
        if not beginnings:
            self._kept.pop(key, None)


def _list_in(opened: Opened) -> tuple[int, int] | None:
    """Where the elements of the conversation begin and end in the body; None when that is not certain."""
    abridged, field = opened.abridged, opened.field
    body = abridged.body
    place = abridged.place(field)
    if place is None:
        name = field.encode()
        at = scan.starts(body, scan.skip_space(body, 0), frozenset((name,))).get(name)
        value = abridged.top.get(field)
        # a name that is written with escapes, or twice: not the field that counts
        if at is None or value is None or not body.startswith(bytes(value), at):
            return None
        place = at, at + len(value)
    begin, end = place[0] + 1, place[1] - 1
    last = body[max(begin, end - _MOST_SPACE) : end].rstrip()
    if body[place[0]] != 0x5B or not last:
        return None
    return begin, max(begin, end - _MOST_SPACE) + len(last)


def _places(body: bytes, begin: int, end: int, messages: int) -> list[tuple[int, int]]:
    """The ends of the last messages, the last one first. Seen when each begins with the name that the first does."""
    places = [(end, messages)]
    opening = _OPENING.match(body, begin)
    if opening is None:
        return places
    separator = b"}, " if opening[2] else b"},"
    while len(places) < _PLACES and messages > 1:
        comma = body.rfind(separator + opening[1], max(begin, end - _LONGEST), end) + 1
        try:
            _value.decode(body[comma + 1 : end] if comma else b"")
        except (msgspec.DecodeError, RecursionError):
            break
        end, messages = comma, messages - 1
        places.append((end, messages))
    return places
