"""One client connection: what it sends becomes requests, one at a time; see ``Server``.

Theory of operation
-------------------
A connection feeds what it reads to the parser, unless it is the head that it had before (``head.Repeat``). Complete
requests are handled strictly one after the other, so pipelined answers keep their order; when too many wait, reading
pauses. A request that cannot be accepted (too large, broken, smuggled) is answered in its turn and in the dialect of
its path, after which the connection lingers for a moment: it discards what still arrives, because closing with unread
bytes would reset the connection and destroy the answer on its way. A client that goes away, or closes its half of the
connection, cancels the handler of its request.

Refused as ambiguous (request smuggling, RFC 9112 6.1 and 6.3): Content-Length together with Transfer-Encoding,
conflicting lengths, any transfer coding but ``chunked``, any of them in HTTP/1.0. The parser itself refuses bare LF
and folded headers. Trailers are not headers: whatever stands before the tower has not seen them.
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
from lmtower.gateway.head import RequestRepeat, target
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
WELCOME = 64 * 1024
"""Bytes of a body that anybody may send; for more a key is asked first."""
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
        self._refused: tuple[HttpExchange, Fault] | None = None
        """The last request, which could not be accepted, while those before it are not answered yet."""
        self._paused = False
        self._discard = False
        self._deadline = monotonic() + HEADER_SECONDS
        self._in_message = False
        self._first = b""
        """The read in which the message that is being parsed began."""
        self._new = True
        """Nothing was read yet."""
        self._known: RequestRepeat | None = None
        """The head of the last request, if its like can be recognised."""
        self._body: list[bytes | memoryview] = []
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
        # parser and connection hold each other; the collector comes seldom, and bodies are large
        self._parser = cast("httptools.HttpRequestParser", None)
        self._errand = self._current = self._refused = None
        self._body.clear()

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._left:
            self._more(data)
            return
        if self._new:
            self._new = False
            self._known = self.server.heads.find(data)
        if self._in_message or self._known is None or not self._again(self._known, data):
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
        if self._discard:
            return False
        start = known.whole(data)
        missing = 0
        if not start:
            found = known.match(data)
            if found is None:
                return False
            start, length = found
            missing = start + length - len(data)
        if missing < 0 or len(data) - start + missing > self.server.max_body:
            return False
        if missing:
            if length > WELCOME and not self._welcome(known.head):
                return False  # the parser finds out in which way, and that it is not
            self._in_message = True
            self._left = missing
            self._body = [memoryview(data)[start:]]
            self._deadline = monotonic() + BODY_SECONDS
        else:
            self._take(Request(known.head, data[start:], self._peer, monotonic()))
        return True

    def _welcome(self, head: Head) -> bool:
        """Whether a large body may come: a known head was in order once, but its key need not have been."""
        try:
            self.server.door(Request(head, peer=self._peer))
        except Fault:
            return False
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
        while data:
            try:
                self._parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                data = self._stay(data[upgrade.args[0] :])
            except httptools.HttpParserError as exc:
                self._refuse(Fault(400, "invalid_http", f"This is not valid HTTP/1.1: {exc}."))
                return
        if self._in_headers and self._header_bytes > HEADER_BYTES and not self._discard:
            self._reject(_headers_too_large())

    def _stay(self, rest: bytes) -> bytes:
        """A request with an upgrade, to be parsed again without it: the parser takes its body for the other protocol.

        RFC 9110 7.8: "A server MAY ignore a received Upgrade header field". Java's client asks for h2c again and again.
        """
        method, version = self._parser.get_method(), self._parser.get_http_version().encode()
        if method == b"CONNECT":
            self._refuse(Fault(405, "method_not_allowed", "This is not a proxy."))
        if self._discard:
            return b""
        lines = [b"%b %b HTTP/%b" % (method, self._url, version)]
        for name, value in self._headers.items():
            if name == b"connection":
                value = b", ".join(word for word in value.split(b",") if word.strip().lower() != b"upgrade")
            if name != b"upgrade" and value:
                lines.append(name + b": " + value)
        self._parser = httptools.HttpRequestParser(self)
        return b"\r\n".join((*lines, b"", rest))

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
        """One header line, or one of the trailers."""
        if not self._in_headers:
            return
        name = name.lower()
        if name in self._headers and name in (b"content-length", b"transfer-encoding", b"host"):
            # RFC 9112 6.3: differing lengths MUST be treated as an unrecoverable error
            self._refuse(Fault(400, "invalid_http", f"The header {name.decode()!r} is given twice."))
        self._headers[name] = value.rstrip(b" \t")
        self._header_size += len(name) + len(value)
        if self._header_size > HEADER_BYTES:
            self._refuse(_headers_too_large())

    def on_headers_complete(self) -> None:
        """All headers are there: decide whether the body may come."""
        self._in_headers = False
        if self._discard or self._parser.should_upgrade():
            return
        headers = self._headers
        coding = headers.get(b"transfer-encoding")
        length = headers.get(b"content-length")
        if coding is not None and (length is not None or coding.lower() != b"chunked"):
            self._refuse(Fault(400, "invalid_http", "Only one of Content-Length and 'Transfer-Encoding: chunked'."))
        elif coding is not None and self._parser.get_http_version() != "1.1":
            # RFC 9112 6.1: "MUST treat the message as if the framing is faulty"
            self._refuse(Fault(400, "invalid_http", "HTTP/1.0 has no Transfer-Encoding."))
        elif length is not None and (not length.isdigit() or int(length) > self.server.max_body):
            self._refuse(_too_large(self.server.max_body))
        elif coding is not None or ((length is not None and int(length) > WELCOME) or b"expect" in headers):
            self._knock()
        if not self._discard:
            self._deadline = monotonic() + BODY_SECONDS

    def _knock(self) -> None:
        """Before a large body: may it come? Without this, whoever reaches the address could fill the memory."""
        try:
            self.server.door(Request(self._head(), peer=self._peer))
        except Fault as fault:
            self._refuse(fault)
            return
        if self._headers.get(b"expect", b"").lower() == b"100-continue" and self._idle:
            self.transport.write(_CONTINUE)

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
        if self._discard or self._parser.should_upgrade():
            return
        body = b"".join(self._body)
        head = self._head()
        self._known = self.server.heads.keep(head, self._first)
        self._first = b""
        self._begin()
        self._take(Request(head, body, self._peer, monotonic()))

    def _head(self) -> Head:
        parser, headers = self._parser, self._headers
        return Head(
            parser.get_method().decode(),
            *target(self._url),
            headers,
            keep_alive=parser.should_keep_alive(),
            http11=parser.get_http_version() == "1.1",
        )

    # -- requests --------------------------------------------------------------------------------------------

    @property
    def _idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return self._current is None and not self._queue

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
        """The current answer is out: go on with the next request or close, within the time that the client may take
        to read what is still on its way."""
        self._current = self._errand = None
        self._deadline = monotonic() + (HEADER_SECONDS if self._in_message else IDLE_SECONDS)
        if not keep_alive:
            self.close()
        elif self._queue or self._refused is not None:
            self.loop.call_soon(self._next)  # not from here: the handler of the last request is still at work
        elif self.server.closing:
            self.close()

    def _next(self) -> None:
        if self._current is not None:
            return
        if self._queue:
            exchange = self._queue.popleft()
            if self._paused and not self._queue:
                self._paused = False
                self.transport.resume_reading()
            self._run(exchange)
        elif self._refused is not None:
            self._answer(*self._refused)

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
        self._body.clear()
        head = Head("POST", path, query, self._headers, keep_alive=False)
        exchange = HttpExchange(self, Request(head, peer=self._peer))
        if self._idle:
            self._answer(exchange, fault)
        else:
            self._refused = exchange, fault

    def _answer(self, exchange: HttpExchange, fault: Fault) -> None:
        request = exchange.request
        dialect = self.server.dialect_of(request.path)
        request_id = request.id or identity.request_id(request.headers) or f"req_{secrets.token_hex(10)}"
        headers: list[Header] = [JSON, (b"x-request-id", request_id.encode()), *fault.header_lines()]
        headers += self.server.cors(request)
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

    @property
    def busy(self) -> bool:
        """Whether somebody waits for an answer."""
        return not self._idle

    def cut(self) -> None:
        """The time is over: end what runs (its handler may still say why), then close."""
        self._queue.clear()
        if self._current is not None:
            self.cancel(self._current)
        if not self.transport.is_closing():
            self.transport.close()

    def close(self) -> None:
        """Flush and close; a body that is still arriving is discarded for a moment first."""
        if self._discard and self.transport.can_write_eof() and not self.transport.is_closing():
            self._deadline = monotonic() + LINGER_SECONDS
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
