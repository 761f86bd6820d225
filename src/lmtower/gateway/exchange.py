"""The seam between the HTTP server and everything behind it: a request in; start, send, finish, disconnected out.

The handler is one coroutine per request, run as an ``Errand``. When the client goes away the server cancels it, so
that leaving the handler (queue, engine connection) needs no polling anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from lmtower.wire.faults import Dialect

Header = tuple[bytes, bytes]
Headers = Sequence[Header]

JSON: Header = (b"content-type", b"application/json")
SSE: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


class Head:
    """Method, target and headers of a request. Header names are lower case; of repeated headers the last one counts.

    The next request on a connection often says the very same: then it has the same ``Head``, and with it ``known``,
    where the handler keeps what it found out from the headers alone.
    """

    __slots__ = ("headers", "http11", "keep_alive", "known", "method", "path", "query")

    def __init__(
        self,
        method: str,
        path: str,
        query: bytes = b"",
        headers: dict[bytes, bytes] | None = None,
        *,
        keep_alive: bool = True,
        http11: bool = True,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers if headers is not None else {}
        self.keep_alive = keep_alive
        self.http11 = http11
        self.known: Any = None


class Request:
    """One complete request."""

    __slots__ = ("body", "head", "headers", "id", "peer", "received")

    def __init__(self, head: Head, body: bytes = b"", peer: str = "", received: float = 0.0) -> None:
        self.head = head
        self.headers = head.headers
        self.body = body
        self.peer = peer
        self.received = received
        """When the request was complete, on the loop's clock."""
        self.id = ""
        """What the handler calls it; nothing when it was refused before it got there."""

    @property
    def method(self) -> str:
        """``GET``, ``POST``, …"""
        return self.head.method

    @property
    def path(self) -> str:
        """Decoded, without the query."""
        return self.head.path

    @property
    def query(self) -> bytes:
        """As it came."""
        return self.head.query

    def header(self, name: bytes) -> str:
        """A header as text, ``""`` when it is missing."""
        return self.headers.get(name, b"").decode("latin-1")


class Exchange(Protocol):
    """One request and the way to answer it."""

    request: Request
    started: bool
    """Whether the status line has gone out."""
    on_pause: Callable[[], None] | None
    """Called when the client reads too slowly: stop reading from the engine."""
    on_resume: Callable[[], None] | None

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """The whole answer in one write."""

    def promise(self) -> None:
        """The answer will come after the handler has returned."""

    def start(self, status: int, headers: Headers, first: bytes = b"") -> None:
        """Begin an answer of unknown length, with a first piece of it if there is one: they leave in one write."""

    def send(self, data: bytes) -> None:
        """A piece of the answer begun by ``start``."""

    def finish(self) -> None:
        """The answer is complete."""

    def abort(self) -> None:
        """Cut the connection, so that a broken answer cannot look complete."""

    def cancel(self) -> None:
        """End the handler of this request where it waits, as if the client had left."""


Handler = Callable[[Exchange], Coroutine[Any, Any, None]]
DialectOf = Callable[[str], Dialect]
"""Path -> dialect for errors that arise before the handler runs (a body over the limit, broken HTTP)."""
Door = Callable[[Request], None]
"""Asked with the head of a request whose body is large, before that is read. Raises Fault to refuse it."""
Cors = Callable[[Request], Headers]
"""Headers that let a web page read answers that no handler gave."""
