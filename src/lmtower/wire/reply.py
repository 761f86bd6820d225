"""What every reply can do; the protocols' own replies build on it."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import msgspec

from lmtower.wire.faults import Dialect, Fault, event
from lmtower.wire.frame import Frame
from lmtower.wire.sse import DONE, Scanner
from lmtower.wire.top import Piece
from lmtower.wire.usage import Usage

MODEL = b'"model":'


@lru_cache(256)
def model_field(name: str) -> bytes:
    """``"model":"name"`` as compact JSON writers put it."""
    return MODEL + msgspec.json.encode(name)


class Again(NamedTuple):
    """A second request, not streamed, that an answer turned out to need before it can be finished."""

    path: str
    pieces: list[Piece]
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Reply:
    """The way back of one request: engine bytes in, client bytes out. See the theory in ``lmtower.wire``.

    ``served`` is the model's name at the engine, ``asked`` the name that the client used; ``request_id`` goes into
    error events.
    """

    __slots__ = ("_from", "_scanner", "_to", "asked", "complete", "events", "request_id", "served", "usage")

    dialect: Dialect = "openai"
    keepalive: bytes = b": keepalive\n\n"
    """An event that every client of the protocol skips."""
    again: Again | None = None
    """Set after ``body`` or the stream's end when the answer needs a second request; then call ``retried``."""
    frame: Frame | None = None
    """When an event that has this frame needs nothing but another head, and counts as one of ``events``."""
    enough: bool = False
    """The answer is complete although the engine has not ended it: its call can be given up."""

    def __init__(self, served: str, asked: str, request_id: str) -> None:
        self.served = served
        self.asked = asked
        self.request_id = request_id
        self.usage = Usage()
        self.complete = False
        self.events = 0
        """Events with tokens in them: the count of output tokens when the engine's own never came."""
        self._scanner: Scanner | None = None
        """Made when the answer turns out to be a stream."""
        # inside a JSON string every quote is escaped, so this sequence can only be the field itself
        self._from = model_field(served)
        self._to = model_field(asked)

    def body(self, data: bytes) -> bytes:
        """The whole answer of a request that does not stream."""
        return data

    def feed(self, data: bytes) -> bytes:
        """Stream bytes as they were read -> bytes to send now (may be none)."""
        run = self._whole_events(data)
        return self.relay(run) if run else b""

    def _whole_events(self, data: bytes) -> bytes:
        """What is complete now, with what was unfinished before."""
        if self._scanner is None:
            self._scanner = Scanner()
        return self._scanner.feed(data)

    def _unfinished(self) -> bytes:
        """What is left of an event that never got its end."""
        return self._scanner.rest() if self._scanner is not None else b""

    def relay(self, run: bytes) -> bytes:
        """A run of whole events -> bytes to send. Protocols override this."""
        return run

    def end(self) -> bytes:
        """The engine ended the stream: bytes to send last.

        The SSE standard says to discard an unfinished event; only ``[DONE]`` is understood without its blank line.
        """
        return self.relay(DONE) if self._unfinished().strip() == DONE.strip() else b""

    def alive(self) -> bytes:
        """Bytes that keep a silent connection open."""
        return self.keepalive

    def retried(self, data: bytes) -> bytes:
        """The answer of the second request: the client's bytes (the rest of the stream, or the whole body)."""
        return self.body(data)

    def recovered(self, status: int, body: bytes) -> bool:
        """The engine failed before it answered: whether ``again`` now holds a request that may succeed."""
        return False

    def broken(self, fault: Fault) -> bytes:
        """The stream cannot go on: the protocol's error event."""
        return event(fault, self.dialect, self.request_id)

    def rename(self, data: bytes, count: int = -1) -> bytes:
        """Put the name that the client asked for in place of the engine's."""
        return data.replace(self._from, self._to, count) if self._from != self._to else data
