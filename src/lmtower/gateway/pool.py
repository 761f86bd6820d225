"""The connections to one replica of an engine: kept ones for the next request, new ones when there are none.

vLLM's server drops idle connections after 5 s, so idle ones are only reused for 4 s. A reused connection that is
closed before the first byte of an answer was idle too long at the other end; such a call is made once more on a
new connection, because the engine never saw it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from time import monotonic
from urllib.parse import urlsplit

from lmtower.gateway.upstream import Call, Connection, UpstreamLost
from lmtower.wire.top import Piece, size

IDLE_SECONDS = 4.0
CONNECT_SECONDS = 5.0
SPARE_SECONDS = 0.003
"""After a call has taken the last kept connection, one is made for the next: not at once, its answer comes first."""


class Pool:
    """Connections to one replica."""

    def __init__(self, url: str, api_key: str | None, *, content_type: str | None = "application/json") -> None:
        parts = urlsplit(url)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or (443 if self._tls else 80)
        self._path = parts.path.rstrip("/")
        self._common = f"host: {parts.netloc.rpartition('@')[2]}\r\n".encode()
        if content_type:
            self._common += f"content-type: {content_type}\r\n".encode()
        if api_key:
            self._common += f"authorization: Bearer {api_key}\r\n".encode()
        self._idle: deque[Connection] = deque()
        self._all: set[Connection] = set()
        self._spare: asyncio.Task[None] | None = None
        """Makes the connection that the next call will find."""
        self._heads: dict[tuple[str, str], bytes] = {}

    async def call(
        self,
        path: str,
        pieces: Sequence[Piece],
        *,
        method: str = "POST",
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> Call:
        """Send a request. Raises UpstreamLost when no connection can be made."""
        now = monotonic()
        connection = self._take(now)
        if connection is None:
            connection = await asyncio.create_task(self._connect())
            now = monotonic()
        return self._send(connection, method, path, pieces, headers, now)

    def kept_call(self, path: str, pieces: Sequence[Piece], headers: Sequence[tuple[bytes, bytes]]) -> Call | None:
        """POST on a connection that was kept, if there is one: the usual case, without a coroutine."""
        now = monotonic()
        connection = self._take(now)
        return None if connection is None else self._send(connection, "POST", path, pieces, headers, now)

    def _send(
        self,
        connection: Connection,
        method: str,
        path: str,
        pieces: Sequence[Piece],
        headers: Sequence[tuple[bytes, bytes]],
        now: float,
    ) -> Call:
        length = size(pieces)
        request: list[Piece] = [self._heads.get((method, path)) or self._head(method, path)]
        for name, value in headers:
            request += (name, b": ", value, b"\r\n")
        request.append(b"content-length: %d\r\n\r\n" % length)
        request += pieces
        call = connection.send(request, length, now)
        idle = self._idle
        if method == "POST" and self._spare is None and (not idle or now - idle[-1].idle_since > IDLE_SECONDS):
            self._spare = asyncio.get_running_loop().create_task(self._prepare())
        return call

    def _head(self, method: str, path: str) -> bytes:
        """What all requests to this path begin with."""
        head = f"{method} {self._path}{path} HTTP/1.1\r\n".encode() + self._common
        if len(self._heads) < 64:
            self._heads[method, path] = head
        return head

    def _take(self, now: float) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.transport.is_closing():
                continue
            if now - connection.idle_since > IDLE_SECONDS:
                connection.transport.abort()
                continue
            return connection
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await loop.create_connection(
                    lambda: Connection(self), self._host, self._port, ssl=self._tls
                )
        except (OSError, TimeoutError) as exc:
            reason = "no answer in time" if isinstance(exc, TimeoutError) else str(exc)
            raise UpstreamLost(f"the engine cannot be reached: {reason}", fresh=True) from exc
        self._all.add(connection)
        return connection

    async def _prepare(self) -> None:
        """Connect for the next call: a stream keeps its connection, and the next one should not wait for its own."""
        try:
            await asyncio.sleep(SPARE_SECONDS)
            connection = await self._connect()
        except UpstreamLost:
            return  # the next call finds out
        finally:
            self._spare = None
        connection.idle_since = monotonic()
        self._idle.append(connection)

    def release(self, connection: Connection, now: float) -> None:
        """Keep a connection for the next call."""
        connection.idle_since = now
        connection.used = True
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        self._all.discard(connection)

    def calls(self) -> list[Call]:
        """The calls that run now."""
        return [connection.call for connection in self._all if connection.call is not None]

    def drop_idle(self) -> None:
        """Forget the kept connections: one of them was closed at the other end, the others will be too."""
        while self._idle:
            self._idle.pop().transport.abort()

    def close(self) -> None:
        """Close every connection, running calls included."""
        if self._spare is not None:
            self._spare.cancel()
        self._idle.clear()
        for connection in list(self._all):
            connection.transport.abort()
