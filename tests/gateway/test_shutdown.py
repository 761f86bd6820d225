"""The end of a tower: what runs may finish, what comes is told to come again, what takes too long is told why."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.fakes.engine import FakeEngine
from tests.gateway.support import running, until

BODY = {"model": "plan", "messages": [{"role": "user", "content": "x"}], "max_tokens": 9}
REFUSED = {"/v1/chat/completions": 503, "/v1/responses": 503, "/v1/messages": 529, "/v1/files": 503}


async def test_new_work_is_refused_in_the_dialect_of_its_path_while_streams_finish(tmp_path: Path) -> None:
    """503 (529 for Anthropic) with a Retry-After that every SDK reads; the stream goes on to its end."""
    with FakeEngine() as engine:
        gate = engine.gate()
        engine.script(text="one two", gate=gate, gate_after=1)
        async with running(tmp_path, engine) as tower:
            stream = asyncio.create_task(tower.chat(stream=True))
            await engine.until(lambda e: e.to("/chat/completions"))
            ending = asyncio.create_task(tower.gateway.stop())
            await until(lambda: tower.gateway.draining)
            for path, status in REFUSED.items():
                answer = await tower.client.post(path, json=BODY)
                assert answer.status_code == status
                assert answer.headers["retry-after"] == "10"
                assert ("request_id" in answer.json()) == (path == "/v1/messages")
            assert (await tower.client.get("/readyz")).status_code == 503
            assert (await tower.client.get("/v1/models")).status_code == 200
            gate.open()
            assert (await stream).text.endswith("data: [DONE]\n\n")
            await ending
        assert len(engine.to("/chat/completions")) == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_what_outlasts_the_grace_is_told_why(tmp_path: Path, path: str) -> None:
    """A stream ends with its protocol's error, a request without an answer gets 503; the engine stops on both."""
    body = {**BODY, "input": "x"}
    with FakeEngine() as engine:
        engine.script(stall_after=0)
        async with running(tmp_path, engine, gateway={"shutdown_grace": 0.05}) as tower:
            received = b""

            async def read() -> None:
                nonlocal received
                async with tower.client.stream("POST", path, json={**body, "stream": True}) as answer:
                    async for piece in answer.aiter_bytes():
                        received += piece

            stream = asyncio.create_task(read())
            whole = asyncio.create_task(tower.client.post(path, json=body))
            await engine.until(lambda e: e.running == 2)
            await until(lambda: tower.gateway.snapshot.engines["big"].admission.in_flight == 2)
            await tower.gateway.stop()
            with pytest.raises(httpx.RemoteProtocolError):
                await stream
            refused = await whole
        assert b"shutting down" in received
        assert refused.status_code in (503, 529)
        assert refused.headers["retry-after"] == "10"
        assert [record.outcome for record in tower.gateway.recent] == ["cancelled"] * 2
        await engine.until(lambda e: len(e.disconnects) == 2)
