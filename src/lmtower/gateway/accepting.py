"""Accepting clients: all that wait, not one in a turn of the loop.

Theory of operation. libuv takes one connection from a listening socket in each turn of the loop. While a thousand
streams have something to relay, a turn is 20 ms long, and whoever is the hundredth in the queue waited two seconds
for somebody to read the request. So when the loop has taken one, whoever waits behind it is taken here, in the same
turn. asyncio's own loop takes all by itself: then there is nobody left.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable

from lmtower.gateway.errand import Errand
from lmtower.logs import get_logger

log = get_logger(__name__)

BACKLOG = 4096
MOST = 64
"""Connections taken in one turn beyond the loop's: those that are served already want their turn, too."""

Factory = Callable[[], asyncio.Protocol]


class Acceptor:
    """Listens at one address. ``factory`` makes the protocol of each connection."""

    def __init__(self, factory: Factory, tls: ssl.SSLContext | None) -> None:
        self._factory = factory
        self._tls = tls
        self._sockets: list[socket.socket] = []
        self._listener: asyncio.Server | None = None

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Start to accept. Returns the address in use (port 0 picks one). Raises OSError."""
        loop = asyncio.get_running_loop()
        listener = self._listener = await loop.create_server(self._taken, host, port, ssl=self._tls, backlog=BACKLOG)
        self._sockets = [given.dup() for given in listener.sockets]
        for listening in self._sockets:
            listening.setblocking(False)
        address = listener.sockets[0].getsockname()
        return address[0], address[1]

    def close(self) -> None:
        """Accept nobody any more."""
        if self._listener is not None:
            self._listener.close()
        for listening in self._sockets:
            listening.close()
        self._sockets.clear()

    def _taken(self) -> asyncio.Protocol:
        """The loop has taken a connection: look who waits behind it."""
        for listening in self._sockets:
            with contextlib.suppress(OSError):  # nobody, most often
                for _ in range(MOST):
                    Errand(self._adopt(listening.accept()[0]), _adopted).start()
        return self._factory()

    async def _adopt(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(self._factory, accepted, ssl=self._tls)


def _adopted(raised: BaseException | None) -> None:
    """Clients leave, and some do not speak TLS: that is theirs. Anything else is ours."""
    if raised is not None and not isinstance(raised, (OSError, asyncio.CancelledError)):
        log.error("a client could not be accepted", error=repr(raised))
