"""HTTP/1.1 server on httptools: bytes in, ``Exchange`` out. One coroutine per request, no framework."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from email.utils import formatdate
from time import monotonic

from lmtower.gateway.accepting import Acceptor
from lmtower.gateway.connection import Connection
from lmtower.gateway.exchange import Cors, DialectOf, Door, Handler
from lmtower.gateway.head import Heads

FLUSH_SECONDS = 0.5


class Server:
    """Listens and owns its connections. Their deadlines are checked by one tick a second instead of a timer each."""

    def __init__(
        self,
        handler: Handler,
        dialect_of: DialectOf,
        *,
        max_body: int,
        door: Door = lambda _: None,
        cors: Cors = lambda _: (),
    ) -> None:
        self.handler = handler
        self.dialect_of = dialect_of
        self.max_body = max_body
        self.door = door
        self.cors = cors
        self.date = b""
        """The header line for answers of this second."""
        self.closing = False
        self.heads = Heads()
        self.connections: set[Connection] = set()
        self._acceptor: Acceptor | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._grace: asyncio.Timeout | None = None

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> tuple[str, int]:
        """Start to accept. Returns the address in use (port 0 picks one). Raises OSError."""
        loop = asyncio.get_running_loop()
        self.tick(monotonic())
        self._acceptor = Acceptor(lambda: Connection(self, loop), tls)
        address = await self._acceptor.listen(host, port)
        self._ticker = loop.create_task(self._run_ticks())
        return address

    @property
    def busy(self) -> int:
        """Connections on which somebody waits for an answer."""
        return sum(connection.busy for connection in self.connections)

    async def close(self, grace: float) -> None:
        """Let running requests finish for ``grace`` seconds, then cut them.

        Meanwhile whoever connects is still served, by a handler that may refuse: an answer with ``Retry-After`` tells
        a client more than a port at which nobody listens.
        """
        self.closing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace) as self._grace:
                while busy := [connection.lost for connection in self.connections if connection.busy]:
                    await asyncio.wait(busy)
        if self._acceptor is not None:
            self._acceptor.close()
        for connection in list(self.connections):
            connection.cut()
        if self.connections:
            await asyncio.wait([connection.lost for connection in self.connections], timeout=FLUSH_SECONDS)
        for connection in list(self.connections):
            connection.abort()
        if self._ticker is not None:
            self._ticker.cancel()

    def hurry(self) -> None:
        """Cut what still runs now."""
        if self._grace is not None:
            self._grace.reschedule(asyncio.get_running_loop().time())

    async def _run_ticks(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.tick(monotonic())

    def tick(self, now: float) -> None:
        """Once a second: write the date anew, let every connection look at its deadline."""
        self.date = b"date: " + formatdate(usegmt=True).encode() + b"\r\n"
        for connection in list(self.connections):
            connection.check(now)
