"""Autocomplete requests of one editor: the newest wins."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.fakes.engine import FakeEngine
from tests.gateway.support import running

PERSONAS = {"coder": {"engine": "big", "fim": "qwen2.5-coder", "lane": "interactive"}}


async def test_newer_autocomplete_request_gives_up_the_older_one(tmp_path: Path) -> None:
    """The older request's work stops at the engine, and its client is told not to try again."""
    with FakeEngine() as engine:
        gate = engine.gate()
        engine.script(text="x", gate=gate, gate_after=-1)
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            old = asyncio.create_task(tower.client.post("/infill", json={"input_prefix": "a", "input_suffix": "b"}))
            await engine.until(lambda e: len(e.requests) > 0 and e.running == 1, timeout=5)
            new = asyncio.create_task(tower.client.post("/infill", json={"input_prefix": "ab", "input_suffix": "b"}))
            answer = await old
            await engine.until(lambda e: e.disconnects, timeout=2)
            gate.open()
            kept = await new
            records = await tower.records(2)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "superseded")
    assert answer.headers["x-should-retry"] == "false"
    assert kept.status_code == 200
    assert [record.outcome for record in records] == ["cancelled", "ok"]


async def test_identical_autocomplete_requests_run_side_by_side(tmp_path: Path) -> None:
    """minuet asks three times at once, to choose."""
    with FakeEngine() as engine:
        engine.script(text="x")
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            body = {"model": "coder", "prompt": "a", "suffix": "b"}
            answers = await asyncio.gather(*(tower.client.post("/v1/completions", json=body) for _ in range(3)))
    assert [answer.status_code for answer in answers] == [200] * 3


@pytest.mark.parametrize("header", ["x-session-id", "x-forwarded-for", "x-openwebui-user-id", "user-agent"])
async def test_two_people_behind_one_key_do_not_give_up_each_others_requests(tmp_path: Path, header: str) -> None:
    """Whatever tells them apart: their session, the address that a proxy saw, their name, their program."""
    with FakeEngine() as engine:
        gate = engine.gate()
        engine.script(text="x", gate=gate, gate_after=-1)
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            tasks = [
                asyncio.create_task(
                    tower.client.post("/infill", json={"input_prefix": "a" * n}, headers={header: f"10.0.0.{n}"})
                )
                for n in (1, 2)
            ]
            await engine.until(lambda e: e.running == 2, timeout=5)
            gate.open()
            answers = await asyncio.gather(*tasks)
    assert [answer.status_code for answer in answers] == [200, 200]
