"""Whole gateways that share PostgreSQL and Redis: one key, one limit, whichever is asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lmtower.ledger import Ledger
from tests.fakes.engine import FakeEngine
from tests.gateway.support import Running, running
from tests.ledger.redis_server import Server

pytestmark = pytest.mark.tools


@asynccontextmanager
async def gateways(
    folder: Path, engine: FakeEngine, database: str, redis: Server, limits: dict[str, Any]
) -> AsyncIterator[list[Running]]:
    """Two of them, with one key."""
    first = Ledger.open(folder / "a", database, redis.url)
    key = first.create_key("alice").secret
    second = Ledger.open(folder / "b", database, redis.url)
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(running(folder / name, engine, ledger=ledger, key=key, limits=limits))
            for name, ledger in (("a", first), ("b", second))
        ]


async def test_requests_over_two_gateways_are_exact(tmp_path: Path, clean: Server, postgres_url: str) -> None:
    """Fifteen at once at each of two gateways against a limit of nine: nine reach the engine, no more and no less."""
    with FakeEngine() as engine:
        engine.script(text="x", delay=0.01)
        async with gateways(tmp_path, engine, postgres_url, clean, {"requests_per_minute": 9}) as towers:
            asked = [tower.chat("fast", max_tokens=5) for _ in range(15) for tower in towers]
            answers = await asyncio.gather(*asked)
        sent = engine.to("/chat/completions")
    assert Counter(answer.status_code for answer in answers) == {200: 9, 429: 21}
    assert len(sent) == 9


async def test_tokens_over_two_gateways_stay_within_their_limit(
    tmp_path: Path, clean: Server, postgres_url: str
) -> None:
    """Rounds of parallel requests at both: the sum is within the limit, and close to it; both headers agree on it."""
    with FakeEngine() as engine:
        engine.script(text="a b c d e", delay=0.002, input_tokens=15)
        async with gateways(tmp_path, engine, postgres_url, clean, {"tokens_per_day": 600}) as towers:
            for _ in range(6):
                await asyncio.gather(*(tower.chat("fast", max_tokens=5) for _ in range(5) for tower in towers))
                for tower in towers:
                    await asyncio.gather(*tower.gateway.ledger.limits._telling)  # type: ignore[attr-defined]
            total = sum(r.input_tokens + r.output_tokens for tower in towers for r in tower.gateway.recent)
            last = [await tower.chat("fast", max_tokens=400) for tower in towers]
    assert 500 <= total <= 600
    assert {answer.json()["error"]["code"] for answer in last} == {"insufficient_quota"}
    assert {answer.headers["x-ratelimit-remaining-tokens"] for answer in last} == {str(600 - total)}


async def test_spent_limit_outlives_both_gateways_and_redis(tmp_path: Path, clean: Server, postgres_url: str) -> None:
    """Everything restarted, Redis empty: what was used comes from PostgreSQL."""
    limits = {"tokens_per_day": 100}
    with FakeEngine() as engine:
        engine.script(text="a b", input_tokens=90)
        async with gateways(tmp_path, engine, postgres_url, clean, limits) as towers:
            key = towers[0].key
            assert (await towers[0].chat("fast", max_tokens=5)).status_code == 200
        clean.command("FLUSHALL")
        ledger = Ledger.open(tmp_path / "c", postgres_url, clean.url)
        async with running(tmp_path / "c", engine, ledger=ledger, key=key, limits=limits) as tower:
            answer = await tower.chat("fast", max_tokens=5)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")
