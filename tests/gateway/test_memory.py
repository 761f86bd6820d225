"""What a request held is free when it ends, and goes back to the system when the tower rests."""

from __future__ import annotations

import asyncio
import gc
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from lmtower.gateway import memory
from lmtower.gateway.connection import Connection
from lmtower.gateway.exchange import Request
from tests.fakes.engine import FakeEngine
from tests.gateway.support import running, until

STREAM = {"content-type": "text/event-stream"}
ENDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "answered": ({}, {}),
    "streamed": ({}, {"stream": True}),
    "refused by us": ({}, {"model": "nope"}),
    "refused by the engine": ({"status": 400, "error": {"message": "no"}}, {}),
    "the engine died": ({"die_after": -1}, {}),
    "the engine died in the stream": ({"die_after": 2, "text": "a b c"}, {"stream": True}),
    "the engine sent nonsense": ({"raw": [b"data: {no\n\n"], "headers": STREAM}, {"stream": True}),
    "the client left": ({"header_delay": 60}, {}),
    "the client left a stream": ({"stall_after": 1, "text": "a b c"}, {"stream": True}),
}


@pytest.mark.parametrize("end", ENDS)
async def test_nothing_of_a_request_waits_for_the_collector(tmp_path: Path, end: str) -> None:
    """The collector comes seldom, and a body may have 64 MiB: neither it nor its connection is part of a cycle."""
    script, fields = ENDS[end]
    body = {"model": "plan", "messages": [{"role": "user", "content": "x"}], **fields}
    with FakeEngine() as engine:
        engine.script(**script)
        async with running(tmp_path, engine) as tower:
            gc.collect()
            gc.disable()
            try:
                asking = asyncio.create_task(tower.client.post("/v1/chat/completions", json=body))
                if "left" in end:
                    await engine.until(lambda e: e.to("/chat/completions"))
                    asking.cancel()
                with suppress(httpx.RemoteProtocolError, asyncio.CancelledError):
                    await asking
                await tower.client.aclose()
                await until(lambda: not tower.gateway.server.connections)
                await asyncio.sleep(0)
                assert not [one for one in gc.get_objects() if type(one) in (Request, Connection)]
            finally:
                gc.enable()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator and /proc")
def test_freed_memory_goes_back() -> None:
    """A hill of freed blocks under something that lives is resident before, and not after."""
    hill = [bytes(100_000) for _ in range(2000)]
    above = bytes(100_000)
    full = memory.resident_bytes()
    del hill
    memory.trim()
    assert memory.resident_bytes() < full - 100_000_000
    assert above


async def test_memory_is_given_back_when_nothing_runs_and_it_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never under load; once for every growth."""
    resident, given, looks = 100, [], 0

    def busy() -> bool:
        nonlocal looks
        looks += 1
        return running

    running = True
    monkeypatch.setattr(memory, "REST_SECONDS", 0)
    monkeypatch.setattr(memory, "resident_bytes", lambda: resident)
    monkeypatch.setattr(memory, "trim", lambda: given.append(resident))
    watching = asyncio.create_task(memory.give_back(busy))
    await until(lambda: looks > 2)
    resident += memory.WORTH_BYTES + 1
    await until(lambda: looks > 5)
    assert not given
    running = False
    await until(lambda: given)
    looks = 0
    await until(lambda: looks > 3)
    assert given == [100 + memory.WORTH_BYTES + 1]
    watching.cancel()
