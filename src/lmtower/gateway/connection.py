"""One client connection: what it sends becomes requests, one at a time; see ``Server``.

Theory of operation
-------------------
A connection feeds what it reads to the parser, unless it is the head that it had before (``head.Repeat``). Complete
requests are handled strictly one after the other, so pipelined answers keep their order; when too many wait, reading
pauses. A request that cannot be accepted (too large, broken, smuggled) is answered in the dialect of its path, after
which the connection lingers for a moment: it discards what still arrives, because closing with unread bytes would
reset the connection and destroy the answer on its way. A client that goes away cancels the handler of its request.

Refused as ambiguous (request smuggling, RFC 9112 6.1 and 6.3): Content-Length together with Transfer-Encoding,
conflicting lengths, any transfer coding but ``chunked``. The parser itself refuses bare LF and folded headers.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, cast

import httptools

from lmtower.gateway import identity
from lmtower.gateway.answer import HttpExchange
from lmtower.gateway.errand import Errand
from lmtower.gateway.exchange import JSON, Head, Header, Request
from lmtower.gateway.head import RequestRepeat, repeat_of, target
from lmtower.logs import get_logger
from lmtower.wire import faults
from lmtower.wire.faults import Fault

if TYPE_CHECKING:
    from lmtower.gateway.server import Server

log = get_logger(__name__)

HEADER_BYTES = 64 * 1024
HEADER_SECONDS = 30.0
BODY_SECONDS = 60.0
SLOWEST = 4096
"""Bytes a second of a body; one that comes more slowly uses up its ``BODY_SECONDS``."""
IDLE_SECONDS = 120.0
LINGER_SECONDS = 2.0
PIPELINED = 16
WRITE_BUFFER = 256 * 1024

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(asyncio.Protocol):
    """Reads requests, runs the handler on each, closes when it is time."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.loop = loop
        self.lost: asyncio.Future[None] = loop.create_future()
        self._parser = httptools.HttpRequestParser(self)
        self._peer = ""
        self._current: HttpExchange | None = None
        self._errand: Errand | None = None
        self._queue: deque[HttpExchange] = deque()
        self._paused = False
        self._discard = False
        self._deadline = monotonic() + HEADER_SECONDS
        self._in_message = False
        self._first = b""
        """The read in which the message that is being parsed began."""
        self._known: RequestRepeat | None = None
        """The head of the last request, if its like can be recognised."""
        self._body: list[bytes] = []
        self._left = 0
        """Bytes that are still to come of a body under a known head."""
        self._begin()

    # -- transport -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        self.server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went away, or we closed: whatever still runs for it ends now."""
        self.server.connections.discard(self)
        self._queue.clear()
        if self._current is not None:
            self.cancel(self._current)
        if not self.lost.done():
            self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._left:
            self._more(data)
        elif self._in_message or self._known is None or not self._again(self._known, data):
            self._parse(data)

    def pause_writing(self) -> None:
        """The client reads slowly: the engine must not fill our memory."""
        if self._current is not None and self._current.on_pause is not None:
            self._current.on_pause()

    def resume_writing(self) -> None:
        """The client caught up."""
        if self._current is not None and self._current.on_resume is not None:
            self._current.on_resume()

    # -- a head that was there before ------------------------------------------------------------------------

    def _again(self, known: RequestRepeat, data: bytes) -> bool:
        """Take a request under the head of the last one. False: this is another head, or more than one request."""
        found = known.match(data)
        if found is None or self._discard:
            return False
        start, length = found
        missing = start + length - len(data)
        if missing < 0 or length > self.server.max_body:
            return False
        if missing:
            self._in_message = True
            self._left = missing
            self._body = [data[start:]]
            self._deadline = monotonic() + BODY_SECONDS
        else:
            self._take(Request(known.head, data[start:], self._peer, monotonic()))
        return True

    def _more(self, data: bytes) -> None:
        """The next piece of a body under a known head."""
        self._left -= len(data)
        rest = b""
        if self._left < 0:
            data, rest = data[: self._left], data[self._left :]
            self._left = 0
        self._body.append(data)
        now = monotonic()
        self._came(len(data), now)
        if not self._left:
            body, self._body = b"".join(self._body), []
            assert self._known is not None
            self._take(Request(self._known.head, body, self._peer, now))
        if rest:
            self.data_received(rest)

    # -- parser ----------------------------------------------------------------------------------------------

    def _parse(self, data: bytes) -> None:
        if self._discard:
            return
        if not self._in_message:
            self._first = data
        if self._in_headers:
            self._header_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # the answer says "connection: close": nothing here speaks another protocol
        except httptools.HttpParserError as exc:
            if not self._discard:
                self._reject(Fault(400, "invalid_http", f"This is not valid HTTP/1.1: {exc}."))
            return
        if self._in_headers and self._header_bytes > HEADER_BYTES and not self._discard:
            self._reject(_headers_too_large())

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body = []
        self._body_bytes = 0
        self._in_headers = True
        self._header_bytes = 0
        """Bytes read while headers were incomplete: catches a name or value that never ends."""
        self._header_size = 0

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._begin()
        self._in_message = True
        self._deadline = monotonic() + HEADER_SECONDS

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line."""
        name = name.lower()
        if name in self._headers and name in (b"content-length", b"transfer-encoding", b"host"):
            # RFC 9112 6.3: differing lengths MUST be treated as an unrecoverable error
            self._refuse(Fault(400, "invalid_http", f"The header {name.decode()!r} is given twice."))
        self._headers[name] = value
        self._header_size += len(name) + len(value)
        if self._header_size > HEADER_BYTES:
            self._refuse(_headers_too_large())

    def on_headers_complete(self) -> None:
        """All headers are there: decide whether the body may come."""
        self._in_headers = False
        headers = self._headers
        coding = headers.get(b"transfer-encoding")
        length = headers.get(b"content-length")
        if coding is not None and (length is not None or coding.strip().lower() != b"chunked"):
            self._refuse(Fault(400, "invalid_http", "Only one of Content-Length and 'Transfer-Encoding: chunked'."))
        elif length is not None and (not length.isdigit() or int(length) > self.server.max_body):
            self._refuse(_too_large(self.server.max_body))
        elif headers.get(b"expect", b"").lower() == b"100-continue" and (length or coding):
            self.transport.write(_CONTINUE)
        self._deadline = monotonic() + BODY_SECONDS

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self._discard:
            return
        self._body_bytes += len(data)
        if self._body_bytes > self.server.max_body:
            self._refuse(_too_large(self.server.max_body))
            return
        self._body.append(data)
        self._came(len(data), monotonic())

    def _came(self, length: int, now: float) -> None:
        """Bytes of a body win time: a byte a minute would otherwise hold a connection, and what it sent, for weeks."""
        self._deadline = min(now + BODY_SECONDS, self._deadline + length / SLOWEST)

    def on_message_complete(self) -> None:
        """A request is complete."""
        if self._discard:
            return
        body = b"".join(self._body) if len(self._body) != 1 else self._body[0]
        head = self._head()
        self._known = repeat_of(head, self._first)
        self._first = b""
        self._begin()
        self._take(Request(head, body, self._peer, monotonic()))

    def _head(self) -> Head:
        parser, headers = self._parser, self._headers
        return Head(
            parser.get_method().decode(),
            *target(self._url),
            headers,
            keep_alive=parser.should_keep_alive() and b"upgrade" not in headers,
            http11=parser.get_http_version() == "1.1",
        )

    # -- requests --------------------------------------------------------------------------------------------

    def _take(self, request: Request) -> None:
        """Handle a request now or after those before it."""
        self._in_message = False
        self._deadline = request.received + IDLE_SECONDS
        exchange = HttpExchange(self, request)
        if self._current is None and not self._queue:
            self._run(exchange)
            return
        self._queue.append(exchange)
        if len(self._queue) >= PIPELINED and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def _run(self, exchange: HttpExchange) -> None:
        self._current = exchange
        self._errand = errand = Errand(self.server.handler(exchange), exchange.left)
        errand.start()

    def left(self, exchange: HttpExchange, raised: BaseException | None) -> None:
        """Outermost edge of a request: whatever went wrong, the client gets an answer or a cut connection."""
        if raised is not None and not isinstance(raised, asyncio.CancelledError):
            # the handler has answered every error it knows
            request = exchange.request
            log.error("request failed", path=request.path, request_id=request.id, exc_info=raised)
            if not exchange.started:
                self._answer(exchange, Fault(500, "internal_error", "The gateway failed on this request."))
                return
        self.abort()

    def answered(self, keep_alive: bool) -> None:
        """The current answer is out: go on with the next request or close."""
        self._current = None
        if not keep_alive:
            self.close()
            return
        self._deadline = monotonic() + (HEADER_SECONDS if self._in_message else IDLE_SECONDS)
        if self._queue:
            self.loop.call_soon(self._next)  # not from here: the handler of the last request is still at work
        elif self.server.closing:
            self.close()

    def _next(self) -> None:
        if self._queue and self._current is None:
            exchange = self._queue.popleft()
            if self._paused and not self._queue:
                self._paused = False
                self.transport.resume_reading()
            self._run(exchange)

    def cancel(self, exchange: HttpExchange) -> None:
        """End the handler of a request where it waits."""
        if exchange is self._current and self._errand is not None and not exchange.finished:
            self._errand.cancel()

    def _refuse(self, fault: Fault) -> None:
        """Refuse the message that is being parsed; what follows of it is not read."""
        if not self._discard:
            self._reject(fault)

    def _reject(self, fault: Fault) -> None:
        path, query = target(self._url)
        if self._left and self._known is not None:
            path, query = self._known.head.path, self._known.head.query
        self._discard = True
        self._left = 0
        self._deadline = monotonic() + LINGER_SECONDS
        self._body.clear()
        if self._current is not None or self._queue:
            # an answer to an earlier request is on its way; this one cannot overtake it
            self.close()
            return
        head = Head("POST", path, query, self._headers, keep_alive=False)
        self._answer(HttpExchange(self, Request(head, peer=self._peer)), fault)

    def _answer(self, exchange: HttpExchange, fault: Fault) -> None:
        request = exchange.request
        dialect = self.server.dialect_of(request.path)
        request_id = request.id or identity.request_id(request.headers) or f"req_{secrets.token_hex(10)}"
        headers: list[Header] = [JSON, (b"x-request-id", request_id.encode()), *fault.header_lines()]
        exchange.respond(faults.status(fault, dialect), headers, faults.render(fault, dialect, request_id))

    # -- ends ------------------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Called once a second: act on a deadline that has passed."""
        if now < self._deadline or self._current is not None:
            return
        if self._in_message and not self._discard:
            self._reject(Fault(408, "request_timeout", "The request did not arrive in time."))
        else:
            self.abort()

    def close_when_idle(self) -> None:
        """Close now, or after the running request."""
        if self._current is None:
            self.close()

    def close(self) -> None:
        """Flush and close; a body that is still arriving is discarded for a moment first."""
        if self._discard and self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
            return
        self.transport.close()

    def abort(self) -> None:
        """Close at once."""
        self.transport.abort()


def _headers_too_large() -> Fault:
    return Fault(431, "headers_too_large", f"Headers over {HEADER_BYTES} bytes are refused.")


def _too_large(limit: int) -> Fault:
    return Fault(
        413, "request_too_large", f"Request too large: the body is over the limit of {limit} bytes.", should_retry=False
    )
