"""Many clients at once: all are taken, whichever loop runs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import uvloop

from lmtower.gateway.accepting import Acceptor
from tests.gateway.support import make_certificate, until

CROWD = 50
LOOPS = pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


class Guest(asyncio.Protocol):
    """Says hello, counts who is here."""

    def __init__(self, here: set[Guest]) -> None:
        self.here = here

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.here.add(self)
        cast("asyncio.Transport", transport).write(b"hello")

    def connection_lost(self, exc: Exception | None) -> None:
        self.here.discard(self)


@LOOPS
def test_crowd_is_taken_in_a_few_turns_of_the_loop(new_loop: NewLoop) -> None:
    """Whoever is last in the queue does not wait for as many turns as there are others."""

    async def crowd() -> None:
        here: set[Guest] = set()
        acceptor = Acceptor(lambda: Guest(here), None)
        address = await acceptor.listen("127.0.0.1", 0)
        clients = [socket.create_connection(address) for _ in range(CROWD)]
        for _ in range(8):
            await asyncio.sleep(0)
        assert len(here) == CROWD
        assert {client.recv(5) for client in clients} == {b"hello"}
        for client in clients:
            client.close()
        await until(lambda: not here)
        acceptor.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(crowd())


@LOOPS
def test_crowd_speaks_tls_and_who_does_not_keeps_nobody_waiting(new_loop: NewLoop, tmp_path: Path) -> None:
    """Also those that the loop did not take itself; one that only sends noise is let go."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(*make_certificate(tmp_path, "tower"))
    client_side = ssl.create_default_context()
    client_side.check_hostname, client_side.verify_mode = False, ssl.CERT_NONE

    async def crowd() -> None:
        here: set[Guest] = set()
        acceptor = Acceptor(lambda: Guest(here), server_side)
        address = await acceptor.listen("127.0.0.1", 0)
        noisy = [socket.create_connection(address) for _ in range(3)]
        clients = [socket.create_connection(address) for _ in range(5)]
        for client in noisy:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        for client in clients:
            client.setblocking(False)
        opened = [asyncio.open_connection(sock=client, ssl=client_side, server_hostname="x") for client in clients]
        streams = await asyncio.gather(*opened)
        assert [await reader.readexactly(5) for reader, _ in streams] == [b"hello"] * 5
        for client in noisy:
            client.setblocking(False)
            with contextlib.suppress(ConnectionResetError):
                while await asyncio.get_running_loop().sock_recv(client, 100):
                    pass
            client.close()
        for _, writer in streams:
            writer.close()
        await until(lambda: not here)
        acceptor.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(crowd())
