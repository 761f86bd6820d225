"""One request on a client's connection and the bytes of its answer."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

from lmtower.gateway.exchange import Headers, Request

if TYPE_CHECKING:
    from lmtower.gateway.connection import Connection

_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus} | {
    529: b"HTTP/1.1 529 Overloaded\r\n"
}


class HttpExchange:
    """See ``Exchange``."""

    __slots__ = ("_chunked", "_connection", "_keep_alive", "finished", "on_pause", "on_resume", "request", "started")

    def __init__(self, connection: Connection, request: Request) -> None:
        self.request = request
        self.started = False
        self.finished = False
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None
        self._connection = connection
        self._keep_alive = request.head.keep_alive
        self._chunked = request.head.http11

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole answer in one write."""
        head = self._head(status, headers)
        # RFC 9110 8.6: "A server MUST NOT send a Content-Length header field in any response with a status code of 204"
        head.append(b"content-length: %d\r\n\r\n" % len(body) if status != 204 else b"\r\n")
        if self.request.head.method != "HEAD":
            head.append(body)
        self._write(b"".join(head))
        self.finished = True
        self._connection.answered(self._keep_alive)

    def promise(self) -> None:
        """The answer will come after the handler has returned."""
        self.finished = True

    def start(self, status: int, headers: Headers, first: bytes = b"") -> None:
        """Begin an answer of unknown length: chunked, or until the connection closes for HTTP/1.0."""
        head = self._head(status, headers)
        if self._chunked:
            head.append(b"transfer-encoding: chunked\r\n\r\n")
            if first:
                head += (b"%x\r\n" % len(first), first, b"\r\n")
        else:
            self._keep_alive = False
            head += (b"\r\n", first)
        self._write(b"".join(head))

    def send(self, data: bytes) -> None:
        """A piece of the answer."""
        transport = self._connection.transport
        if data and not transport.is_closing():
            transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def finish(self) -> None:
        """The answer is complete."""
        if self._chunked:
            self._write(b"0\r\n\r\n")
        self.finished = True
        self._connection.answered(self._keep_alive)

    def abort(self) -> None:
        """Flush and cut without the last chunk, so that a truncated answer does not look complete."""
        self.finished = True
        self._connection.answered(keep_alive=False)

    def left(self, raised: BaseException | None) -> None:
        """The handler has ended; ``raised`` is what it did not catch."""
        if raised is not None or not self.finished:
            self._connection.left(self, raised)

    def cancel(self) -> None:
        """End the handler where it waits."""
        self._connection.cancel(self)

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
        elif not self.request.head.http11:
            lines.append(b"connection: keep-alive\r\n")
        return lines

    def _write(self, data: bytes) -> None:
        transport = self._connection.transport
        if not transport.is_closing():
            transport.write(data)
