"""HTTP/1.1 to a trusted engine: connections on httptools, one ``Call`` per request.

Theory of operation
-------------------
A connection carries one call at a time. The call gathers the answer's body until somebody attaches a sink; from
then on every read goes straight to the sink, in the transport's callback, with no task or queue between, and not even
through the parser if it is one whole chunk (``chunks``). Closing a
call before its answer is complete closes the connection, and that is what cancels the work in the engine: vLLM and
llama.cpp both watch for it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Generator, Sequence
from time import monotonic
from types import coroutine
from typing import TYPE_CHECKING, Any, cast

import httptools

from lmtower.errors import EngineError
from lmtower.gateway.chunks import EVENT_END, is_between, opening
from lmtower.gateway.errand import Signal
from lmtower.gateway.head import Repeat, around_length
from lmtower.wire.top import Piece

if TYPE_CHECKING:
    from lmtower.gateway.pool import Pool

WRITE_BUFFER = 256 * 1024
JOIN_BYTES = 64 * 1024
"""Below this, copying the pieces together is cheaper than handing the kernel a vector of them."""

_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 2, "TCP_USER_TIMEOUT": 20_000}
_OPTIONS = [(getattr(socket, name), value) for name, value in _KEEPALIVE.items() if hasattr(socket, name)]
"""A cut cable sends no reset: without these a request on it waits as long as for the slowest prompt."""


class UpstreamLost(EngineError):
    """The engine cannot be reached or went away. ``fresh`` is True when it cannot have seen the request, ``late`` when
    it was given up because it took too long."""

    def __init__(self, message: str, *, fresh: bool, late: bool = False) -> None:
        super().__init__(message)
        self.fresh = fresh
        self.late = late

    def again(self) -> UpstreamLost:
        """The same to be raised: one that is kept would keep the frames that it went through, and they the call."""
        return UpstreamLost(str(self), fresh=self.fresh, late=self.late)


class Call(Signal):
    """One request to an engine and its answer. Await ``head()`` and attach a sink, or await ``body()``."""

    __slots__ = (
        "_chunks",
        "_connection",
        "_headers",
        "_wants_head",
        "complete",
        "error",
        "last_read",
        "paused",
        "read",
        "relayed",
        "status",
        "take",
    )

    def __init__(self, connection: Connection, now: float) -> None:
        super().__init__()
        self.status = 0
        self.complete = False
        self.error: UpstreamLost | None = None
        self.last_read = now
        """When something was last read; at first, when the request was sent."""
        self.paused = False
        """Whether the engine waits for a client that does not read."""
        self._connection: Connection | None = connection
        self._headers: dict[bytes, bytes] | bytes = b""
        self._chunks: list[bytes] = []
        self.read: Callable[[bytes], None] = self._chunks.append
        """What the connection does with a piece of the body."""
        self.take: Callable[[bytes, int], bool] | None = None
        """See ``attach``."""
        self.relayed = False
        """Whether the body goes to a sink."""
        self._wants_head = False

    @property
    def headers(self) -> dict[bytes, bytes]:
        """Header lines by name in lower case. Hardly anybody asks for those of a plain answer: then they are read."""
        if isinstance(self._headers, bytes):
            head = self._headers.partition(b"\r\n\r\n")[0]
            lines = [line.partition(b":") for line in head.split(b"\r\n")[1:]]
            self._headers = {name.lower(): value.strip() for name, _, value in lines}
        return self._headers

    @property
    def event_stream(self) -> bool:
        """Whether the answer is an event stream."""
        return self.headers.get(b"content-type", b"").startswith(b"text/event-stream")

    @coroutine  # says to the loop what ``Signal.__await__`` says, with a frame less in every step
    def head(self) -> Generator[Any, None, None]:
        """Wait for status and headers. Raises UpstreamLost."""
        if self.status == 0 and self.error is None:
            self._wants_head = True
            self._asyncio_future_blocking = True
            yield self
        if self.error is not None and not self.status:
            raise self.error.again()

    @coroutine
    def done(self) -> Generator[Any, None, None]:
        """Wait for the end of the answer. Raises UpstreamLost when it was cut short."""
        if not self.complete and self.error is None:
            self._asyncio_future_blocking = True
            yield self
        if self.error is not None:
            raise self.error.again()

    async def body(self) -> bytes:
        """Wait for the whole answer. Raises UpstreamLost."""
        await self.done()
        return self.gathered()

    def gathered(self) -> bytes:
        """What came of the body and went to no sink: all of it when the call is done."""
        return b"".join(self._chunks) if len(self._chunks) != 1 else self._chunks[0]

    def attach(self, sink: Callable[[bytes], None], take: Callable[[bytes, int], bool] | None = None) -> None:
        """Send the body to ``sink`` as it is read, beginning with what is already here.

        A read that is one chunk, made of whole events, is first offered to ``take``: the read, and where the body
        begins in it, which goes up to its last two bytes. What ``take`` returns False for goes to ``sink``.
        """
        self.read, self.take, self.relayed = sink, take, True
        chunks, self._chunks = self._chunks, []
        for chunk in chunks:
            sink(chunk)

    def pause(self) -> None:
        """Stop reading from the engine."""
        self.paused = True
        if self._connection is not None:
            self._connection.transport.pause_reading()

    def resume(self) -> None:
        """Go on reading from the engine."""
        self.paused = False
        if self._connection is not None:
            self._connection.transport.resume_reading()

    def close(self) -> None:
        """Give the call up: if it is not complete, its connection closes and the engine stops working on it."""
        if self._connection is not None:
            self._connection.transport.abort()

    # -- called by the connection ----------------------------------------------------------------------------

    def began(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Status and headers are there."""
        self.status = status
        self._headers = headers

    def was_read(self) -> None:
        """All of a read was handed on: whoever waits for the head gets it with what came behind it."""
        if self._wants_head and self.status:
            self._wants_head = False
            self.wake()

    def answered(self, data: bytes, start: int) -> None:
        """All of a plain answer, read at once; its body begins at ``start``."""
        self.status = 200
        self._headers = data
        self._chunks = [data[start:]]
        self._connection = None
        self.complete = True
        self.wake()

    def ended(self, error: UpstreamLost | None) -> None:
        """The answer is complete, or (with an error) never will be."""
        self._connection = None
        self.complete = error is None
        self.error = error
        self.wake()

    def fail(self, message: str, *, late: bool = False) -> None:
        """End the call with an error of our own (a timeout)."""
        connection = self._connection
        if connection is not None:
            connection.call = None
            connection.transport.abort()
            self.ended(UpstreamLost(message, fresh=False, late=late))


class Connection(asyncio.Protocol):
    """One connection to an engine."""

    def __init__(self, pool: Pool) -> None:
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.call: Call | None = None
        self.idle_since = 0.0
        self.used = False
        self._pool = pool
        self._parts: list[bytes] = []
        """Pieces of the body in the read that is being parsed: an engine makes a chunk of every token."""
        self.on_body = self._parts.append
        self._parser = httptools.HttpResponseParser(self)
        self._parsing = False
        self._chunked = False
        self._endless = False
        """Whether the body ends with the connection."""
        self._between = False
        """Whether the parser is between two chunks, and the body between two events."""
        self._plain: Repeat | None = None
        """The head of the last plain answer."""
        self._headers: dict[bytes, bytes] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        _notice_cut_links(transport.get_extra_info("socket"))

    def send(self, request: Sequence[Piece], length: int, now: float) -> Call:
        """Write a request, whose body is ``length`` bytes long, and return its call."""
        call = self.call = Call(self, now)
        if length < JOIN_BYTES:
            self.transport.write(b"".join(request))
        else:
            self.transport.writelines(request)
        return call

    def data_received(self, data: bytes) -> None:
        """Bytes from the engine."""
        call = self.call
        if call is None:
            self.transport.abort()
            return
        call.last_read = now = monotonic()
        if self._between:
            size = opening(len(data))
            if data.startswith(size) and data.endswith(EVENT_END):
                if call.take is None or not call.take(data, len(size)):
                    call.read(data[len(size) : -2])
                return
            self._between = False
        elif not self._parsing:
            start = self._plain.whole(data) if self._plain is not None else 0
            if start or (start := self._plain_start(data)):
                self.call = None
                self._pool.release(self, now)
                call.answered(data, start)
                return
            self._parsing = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.transport.abort()
        except httptools.HttpParserError as exc:
            self._hand_on()
            self._lost(f"the engine's answer is not HTTP: {exc}")
            self.transport.abort()
        if self._parts:
            self._between = self._chunked and is_between(data, self._parts[-1])
            self._hand_on()
        call.was_read()

    def _hand_on(self) -> None:
        """Give the call what was read of its body, as one piece."""
        parts = self._parts
        if parts:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            if self.call is not None:
                self.call.read(data)

    def _plain_start(self, data: bytes) -> int:
        """``plain_start``; most often the head says the same as the last one."""
        if self._plain is not None:
            found = self._plain.match(data)
            if found is not None:
                start, length = found
                return start if len(data) - start == length else 0
        start = plain_start(data)
        parts = around_length(data) if start else None
        self._plain = Repeat(*parts) if parts else None
        return start

    def eof_received(self) -> None:
        """The engine closed: so ends an answer that says nothing of its length (RFC 9112 6.3)."""
        call = self.call
        if call is not None and call.status and self._endless:
            self.call = None
            call.ended(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine closed, or we did."""
        self._pool.forget(self)
        self._parser = cast("httptools.HttpResponseParser", None)  # parser and connection hold each other
        self._lost("the engine closed the connection")

    def _lost(self, message: str) -> None:
        call, self.call = self.call, None
        if call is not None:
            call.ended(UpstreamLost(message, fresh=self.used and not self._parsing))

    def on_message_begin(self) -> None:
        """The first byte of an answer."""
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line."""
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Status and headers are there; a 1xx answer is only an announcement."""
        status = self._parser.get_status_code()
        if self.call is not None and status >= 200:
            self._chunked = self._headers.get(b"transfer-encoding", b"").lower() == b"chunked"
            self._endless = not self._chunked and b"content-length" not in self._headers
            self.call.began(status, self._headers)

    def on_message_complete(self) -> None:
        """The answer is complete: the connection may carry the next call."""
        self._hand_on()
        call = self.call
        if call is None or call.status == 0:
            return
        self.call = None
        self._parsing = False
        if self._parser.should_keep_alive():
            # before the waiter goes on, so that its next call finds the connection
            self._pool.release(self, call.last_read)
        else:
            self.transport.close()
        call.ended(None)


def plain_start(data: bytes) -> int:
    """Where the body begins if these bytes are all of an answer with status 200 and a length, on a connection that is
    kept; else 0, and the parser looks at it. Most answers that do not stream are such."""
    if not data.startswith(b"HTTP/1.1 200 "):
        return 0
    end = data.find(b"\r\n\r\n")
    head = data[: end + 2].lower()
    at = head.find(b"\r\ncontent-length:")
    if at < 0 or end < 0 or head.find(b"\r\nconnection:") >= 0 or head.find(b"\r\ntransfer-encoding:") >= 0:
        return 0
    length = head[at + 17 : head.find(b"\r\n", at + 17)].strip()
    return end + 4 if length.isdigit() and len(data) - end - 4 == int(length) else 0


def _notice_cut_links(sock: socket.socket | None) -> None:
    """Let the kernel end a connection whose other end has been silent to it for 20 s."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    # the transport's own view of a socket makes a socket anew for every option
    own = socket.socket(sock.family, sock.type, sock.proto, sock.fileno())
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _OPTIONS:
            own.setsockopt(socket.IPPROTO_TCP, name, value)
    finally:
        own.detach()
