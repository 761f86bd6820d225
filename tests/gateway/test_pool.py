"""Connections to an engine: one is there before it is asked for, none is left over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from lmtower.gateway import pool
from lmtower.gateway.pool import Pool
from tests.gateway.support import until


class Silent(asyncio.Protocol):
    """An engine's end of a connection. It never answers."""

    def __init__(self, everybody: list[Silent]) -> None:
        self.read = b""
        self.open = True
        everybody.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.read += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False


@asynccontextmanager
async def engine() -> AsyncIterator[tuple[Pool, list[Silent]]]:
    """A pool before an engine that takes requests and is silent."""
    here: list[Silent] = []
    async with await asyncio.get_running_loop().create_server(lambda: Silent(here), "127.0.0.1", 0) as server:
        found = Pool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", None)
        yield found, here
        found.close()
        await until(lambda: not any(one.open for one in here))


async def test_next_stream_finds_its_connection_made() -> None:
    """While the first one runs; so does the third one after the second."""
    async with engine() as (found, here):
        await found.call("/first", [b"{}"])
        for number, path in enumerate(("/second", "/third"), 2):
            await until(lambda number=number: len(here) == number and found._idle)
            assert found.kept_call(path, [b"{}"], []) is not None
            await until(lambda number=number, path=path: path.encode() in here[number - 1].read)


async def test_connection_that_waited_too_long_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine may be about to close it."""
    monkeypatch.setattr(pool, "IDLE_SECONDS", -1.0)
    async with engine() as (found, here):
        await found.call("/first", [b"{}"])
        await until(lambda: found._idle)
        assert found.kept_call("/second", [b"{}"], []) is None
        await until(lambda: not here[1].open)
        assert not found._idle


async def test_closed_pool_leaves_no_connection_behind() -> None:
    """Whether the next one was still to be made, or was being made."""
    for turns in range(8):
        async with engine() as (found, here):
            await found.call("/first", [b"{}"])
            for _ in range(turns):
                await asyncio.sleep(pool.SPARE_SECONDS / 4)
            found.close()
            await until(lambda here=here: not any(one.open for one in here))
            assert not found._all
