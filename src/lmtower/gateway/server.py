"""HTTP/1.1 server on httptools: bytes in, ``Exchange`` out. One coroutine per request, no framework.

Theory of operation
-------------------
A connection feeds what it reads to the parser. Complete requests go into a queue and are handled strictly one
after the other, so pipelined answers keep their order; when too many wait, reading pauses. A request that cannot
be accepted (too large, broken, smuggled) is answered in the dialect of its path, after which the connection
lingers for a moment: it discards what still arrives, because closing with unread bytes would reset the connection
and destroy the answer on its way. A client that goes away cancels its handler's task.

Deadlines (headers, body, idle) are checked by one tick a second over all connections instead of a timer each.
Refused as ambiguous (request smuggling, RFC 9112 6.1 and 6.3): Content-Length together with Transfer-Encoding,
conflicting lengths, any transfer coding but ``chunked``. The parser itself refuses bare LF and folded headers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from email.utils import formatdate
from http import HTTPStatus
from time import monotonic
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import httptools

from lmtower.gateway.exchange import JSON, DialectOf, Handler, Header, Headers, Request
from lmtower.logs import get_logger
from lmtower.wire import faults
from lmtower.wire.faults import Fault

log = get_logger(__name__)

HEADER_BYTES = 64 * 1024
HEADER_SECONDS = 30.0
BODY_SECONDS = 60.0
IDLE_SECONDS = 120.0
LINGER_SECONDS = 2.0
PIPELINED = 16
WRITE_BUFFER = 256 * 1024

_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus} | {
    529: b"HTTP/1.1 529 Overloaded\r\n"
}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Server:
    """Listens and owns its connections."""

    def __init__(self, handler: Handler, dialect_of: DialectOf, *, max_body: int) -> None:
        self.handler = handler
        self.dialect_of = dialect_of
        self.max_body = max_body
        self.date = b""
        self.closing = False
        self.connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None
        self._ticker: asyncio.Task[None] | None = None

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> tuple[str, int]:
        """Start to accept. Returns the address in use (port 0 picks one). Raises OSError."""
        loop = asyncio.get_running_loop()
        self._tick(monotonic())
        self._listener = await loop.create_server(lambda: Connection(self), host, port, ssl=tls, backlog=4096)
        self._ticker = loop.create_task(self._run_ticks())
        address = self._listener.sockets[0].getsockname()
        return address[0], address[1]

    async def close(self, grace: float) -> None:
        """Refuse new connections, let running requests finish for ``grace`` seconds, then cut."""
        self.closing = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.connections):
            connection.close_when_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                while self.connections:
                    await asyncio.wait([connection.lost for connection in self.connections])
        for connection in list(self.connections):
            connection.abort()
        if self._ticker is not None:
            self._ticker.cancel()

    async def _run_ticks(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._tick(monotonic())

    def _tick(self, now: float) -> None:
        self.date = b"date: " + formatdate(usegmt=True).encode() + b"\r\n"
        for connection in list(self.connections):
            connection.check(now)


class HttpExchange:
    """One request on one connection; see ``Exchange``."""

    __slots__ = ("_chunked", "_connection", "_keep_alive", "finished", "on_pause", "on_resume", "request", "started")

    def __init__(self, connection: Connection, request: Request, keep_alive: bool, chunked: bool) -> None:
        self.request = request
        self.started = False
        self.finished = False
        self.on_pause: Any = None
        self.on_resume: Any = None
        self._connection = connection
        self._keep_alive = keep_alive
        self._chunked = chunked

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole answer in one write."""
        head = self._head(status, headers)
        head.append(b"content-length: %d\r\n\r\n" % len(body))
        if self.request.method != "HEAD":
            head.append(body)
        self._write(b"".join(head))
        self.finished = True
        self._connection.answered(self, self._keep_alive)

    def start(self, status: int, headers: Headers) -> None:
        """Begin an answer of unknown length: chunked, or until the connection closes for HTTP/1.0."""
        head = self._head(status, headers)
        if self._chunked:
            head.append(b"transfer-encoding: chunked\r\n\r\n")
        else:
            self._keep_alive = False
            head.append(b"\r\n")
        self._write(b"".join(head))

    def send(self, data: bytes) -> None:
        """A piece of the answer."""
        if data:
            self._write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def finish(self) -> None:
        """The answer is complete."""
        if self._chunked:
            self._write(b"0\r\n\r\n")
        self.finished = True
        self._connection.answered(self, self._keep_alive)

    def abort(self) -> None:
        """Flush and cut without the last chunk, so that a truncated answer does not look complete."""
        self.finished = True
        self._connection.close()

    def _head(self, status: int, headers: Headers) -> list[bytes]:
        self.started = True
        server = self._connection.server
        if server.closing:
            self._keep_alive = False
        lines = [_STATUS_LINES[status], server.date]
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        if not self._keep_alive:
            lines.append(b"connection: close\r\n")
        return lines

    def _write(self, data: bytes) -> None:
        transport = self._connection.transport
        if not transport.is_closing():
            transport.write(data)


class Connection(asyncio.Protocol):
    """One client connection."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self.loop.create_future()
        self._parser = httptools.HttpRequestParser(self)
        self._peer = ""
        self._current: HttpExchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._queue: deque[HttpExchange] = deque()
        self._paused = False
        self._discard = False
        self._upgrade = False
        self._deadline = monotonic() + HEADER_SECONDS
        self._in_message = False
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
        if self._task is not None and self._current is not None and not self._current.finished:
            self._task.cancel()
        if not self.lost.done():
            self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._discard:
            return
        if self._in_headers:
            self._header_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._upgrade = True
        except httptools.HttpParserError as exc:
            if not self._discard:
                self._reject(Fault(400, "invalid_http", f"This is not valid HTTP/1.1: {exc}."))
            return
        if self._in_headers and self._header_bytes > HEADER_BYTES and not self._discard:
            self._reject(_headers_too_large())

    def pause_writing(self) -> None:
        """The client reads slowly: the engine must not fill our memory."""
        if self._current is not None and self._current.on_pause is not None:
            self._current.on_pause()

    def resume_writing(self) -> None:
        """The client caught up."""
        if self._current is not None and self._current.on_resume is not None:
            self._current.on_resume()

    # -- parser ----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
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
        self._deadline = monotonic() + BODY_SECONDS

    def on_message_complete(self) -> None:
        """A request is complete: handle it now or after those before it."""
        if self._discard:
            return
        now = monotonic()
        self._in_message = False
        self._deadline = now + IDLE_SECONDS
        parser = self._parser
        keep_alive = parser.should_keep_alive() and not self._upgrade_asked()
        request = Request(
            parser.get_method().decode(),
            *_target(self._url),
            self._headers,
            b"".join(self._body) if len(self._body) != 1 else self._body[0],
            self._peer,
            now,
        )
        exchange = HttpExchange(self, request, keep_alive, parser.get_http_version() == "1.1")
        self._begin()
        if self._current is None:
            self._run(exchange)
            return
        self._queue.append(exchange)
        if len(self._queue) >= PIPELINED and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def _upgrade_asked(self) -> bool:
        return b"upgrade" in self._headers

    # -- requests --------------------------------------------------------------------------------------------

    def _run(self, exchange: HttpExchange) -> None:
        self._current = exchange
        self._task = self.loop.create_task(self._handle(exchange))

    async def _handle(self, exchange: HttpExchange) -> None:
        """Outermost edge of a request: whatever goes wrong, the client gets an answer or a cut connection."""
        try:
            await self.server.handler(exchange)
        except asyncio.CancelledError:
            self.abort()
        except Exception:  # the outer edge that STYLE allows: the handler has answered every error it knows
            log.exception("request failed", path=exchange.request.path)
            if exchange.started:
                self.abort()
            else:
                self._answer(exchange, Fault(500, "internal_error", "The gateway failed on this request."))
        if not exchange.finished:
            self.abort()

    def answered(self, exchange: HttpExchange, keep_alive: bool) -> None:
        """The current answer is out: go on with the next request or close."""
        self._current = None
        if not keep_alive:
            self.close()
            return
        self._deadline = monotonic() + (HEADER_SECONDS if self._in_message else IDLE_SECONDS)
        if self._queue:
            self._run(self._queue.popleft())
            if self._paused and not self._queue:
                self._paused = False
                self.transport.resume_reading()
        elif self.server.closing:
            self.close()

    def _refuse(self, fault: Fault) -> None:
        """Refuse the message that is being parsed; what follows of it is not read."""
        if not self._discard:
            self._reject(fault)

    def _reject(self, fault: Fault) -> None:
        self._discard = True
        self._deadline = monotonic() + LINGER_SECONDS
        self._body.clear()
        if self._current is not None:
            # an answer to an earlier request is on its way; this one cannot overtake it
            self.close()
            return
        request = Request("POST", *_target(self._url), self._headers, peer=self._peer)
        self._answer(HttpExchange(self, request, keep_alive=False, chunked=True), fault)

    def _answer(self, exchange: HttpExchange, fault: Fault) -> None:
        dialect = self.server.dialect_of(exchange.request.path)
        headers: list[Header] = [JSON, (b"x-request-id", b"rejected"), *fault.header_lines()]
        exchange.respond(faults.status(fault, dialect), headers, faults.render(fault, dialect, "rejected"))

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


def _target(url: bytes) -> tuple[str, bytes]:
    """Path (decoded) and query (as it came) of a request target, which may be absolute (RFC 9112 3.2.2)."""
    if not url.startswith(b"/"):
        scheme = url.find(b"://")
        slash = url.find(b"/", scheme + 3) if scheme > 0 else -1
        url = url[slash:] if slash > 0 else b"/"
    path, _, query = url.partition(b"?")
    if b"%" in path:
        path = unquote_to_bytes(path)
    return path.decode("latin-1"), query


def _headers_too_large() -> Fault:
    return Fault(431, "headers_too_large", f"Headers over {HEADER_BYTES} bytes are refused.")


def _too_large(limit: int) -> Fault:
    return Fault(
        413, "request_too_large", f"Request too large: the body is over the limit of {limit} bytes.", should_retry=False
    )
