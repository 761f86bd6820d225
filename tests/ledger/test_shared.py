"""Limits that several towers share through a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from lmtower.config.types import Limits, Price
from lmtower.errors import LedgerError
from lmtower.ledger import Client, Ledger, LimitRefusal, Reservation, shared
from lmtower.ledger.accounts import Account
from lmtower.ledger.shared import SharedLimits, SharedReservation
from tests.ledger.records import NOW
from tests.ledger.redis_server import Server

pytestmark = pytest.mark.tools


@asynccontextmanager
async def _towers(server: Server, count: int) -> AsyncIterator[list[SharedLimits]]:
    towers = [SharedLimits(server.url) for _ in range(count)]
    for tower in towers:
        await tower.start()
    try:
        yield towers
    finally:
        for tower in towers:
            await tower.close()


def _client(**limits: Any) -> Client:
    return Client(id="key_1", name="alice", limits=Limits(**limits))


async def _reserve(tower: SharedLimits, client: Client, now: float, tokens: int = 0, **more: Any) -> Any:
    return await tower.reserve_shared(
        client, "plan", more.pop("persona", None), more.pop("price", None), tokens, more.pop("images", 0), now, **more
    )


async def _told(*towers: SharedLimits) -> None:
    for tower in towers:
        await asyncio.gather(*tower._telling)


async def _until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 8
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        await asyncio.sleep(0.01)


async def test_towers_share_each_limit(clean: Server) -> None:
    """What one tower grants, the other one feels, for every kind of limit."""
    cases: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
        ({"requests_per_minute": 2}, {}, False),
        ({"tokens_per_minute": 20}, {"tokens": 10}, False),
        ({"tokens_per_day": 20}, {"tokens": 10}, True),
        ({"images_per_day": 4}, {"images": 2}, True),
        ({"money_per_month": 2e-5}, {"tokens": 10, "price": Price(input=1.0, output=1.0)}, True),
    ]
    async with _towers(clean, 2) as (first, second):
        for number, (limits, use, hard) in enumerate(cases):
            client = Client(id=f"key_{number}", name="x", limits=Limits(**limits))
            for tower in (first, second):
                held = await _reserve(tower, client, NOW, **use)
                assert isinstance(held, Reservation)
                tower.settle(held, use.get("tokens", 0), 0, 0, use.get("images", 0), NOW)
                await _told(tower)
            for tower in (first, second):
                refusal = await _reserve(tower, client, NOW + 1, **use)
                assert isinstance(refusal, LimitRefusal)
                assert (refusal.reason, refusal.hard) == (next(iter(limits)), hard)
            if not hard:
                assert 55 <= refusal.retry_after <= 60
                assert isinstance(await _reserve(first, client, NOW + 62, **use), Reservation)


async def test_parallel_requests_are_counted_over_towers(clean: Server) -> None:
    """Of sixty requests at once on three towers exactly as many run as may."""
    client = _client(parallel=20)
    async with _towers(clean, 3) as towers:
        answers = await asyncio.gather(*(_reserve(towers[n % 3], client, NOW) for n in range(60)))
        granted = [(towers[n % 3], held) for n, held in enumerate(answers) if isinstance(held, Reservation)]
        assert len(granted) == 20
        for tower, held in granted[:5]:
            tower.release(held)
        for tower, held in granted[5:10]:
            tower.settle(held, now=NOW)
        await _told(*towers)
        again = await asyncio.gather(*(_reserve(towers[0], client, NOW) for _ in range(30)))
        assert sum(isinstance(held, Reservation) for held in again) == 10


async def test_settle_and_release_count_once_and_exactly(clean: Server) -> None:
    """Estimates are replaced by the use; released requests leave nothing; repeats change nothing."""
    client = _client(requests_per_minute=2, tokens_per_minute=100)
    async with _towers(clean, 2) as (first, second):
        held = await _reserve(first, client, NOW, 100)
        assert isinstance(await _reserve(second, client, NOW, 1), LimitRefusal)
        first.release(held)
        first.release(held)
        await _told(first)
        held = await _reserve(second, client, NOW, 100)
        for _ in range(2):
            second.settle(held, 30, 0, 30, 0, NOW)
        await _told(second)
        assert isinstance(await _reserve(first, client, NOW, 41), LimitRefusal)
        held = await _reserve(first, client, NOW, 40)
        assert isinstance(held, Reservation)
        assert dict(second.headers(held, "openai", NOW)) == {
            "x-ratelimit-limit-requests": "2", "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "1m1s",
            "x-ratelimit-limit-tokens": "100", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m1s",
        }  # fmt: skip


async def test_repeat_on_another_tower_counts_once(clean: Server) -> None:
    """An SDK's retry may land on another tower."""
    client = _client(requests_per_minute=1)
    async with _towers(clean, 2) as (first, second):
        first.settle(await _reserve(first, client, NOW, fingerprint="a"), now=NOW)
        again = await _reserve(second, client, NOW, retry=True, fingerprint="a")
        assert isinstance(again, Reservation)
        assert again.retry
        assert isinstance(await _reserve(second, client, NOW, retry=True, fingerprint="b"), LimitRefusal)


async def test_no_window_exceeds_its_limit_over_towers(clean: Server) -> None:
    """Random traffic on two towers: no 60 s hold more requests or tokens than the limit."""
    random, client, now = Random(7), _client(requests_per_minute=5, tokens_per_minute=100), NOW
    began, used = [], []
    async with _towers(clean, 2) as towers:
        for _ in range(150):
            now += random.uniform(0, 12)
            tower, estimate = random.choice(towers), random.randint(1, 60)
            held = await _reserve(tower, client, now, estimate)
            if isinstance(held, Reservation):
                amount = random.randint(0, estimate)
                tower.settle(held, amount, 0, 0, 0, now)
                await _told(tower)
                began.append(now)
                used.append((now, amount))
    assert len(began) > 30
    for begin in began:
        assert sum(begin <= at < begin + 60 for at in began) <= 5
        assert sum(amount for at, amount in used if begin <= at < begin + 60) <= 100


async def test_what_a_dead_tower_held_comes_free(clean: Server) -> None:
    """A tower that is not heard of any more holds nothing."""
    client = _client(parallel=1)
    async with _towers(clean, 2) as (first, second):
        assert isinstance(await _reserve(first, client, NOW), Reservation)
        assert isinstance(await _reserve(second, client, NOW), LimitRefusal)
        assert 0 < int(clean.command("TTL", f"lmtower:tower:{first._tower}")) <= 10
        clean.command("DEL", f"lmtower:tower:{first._tower}")
        assert isinstance(await _reserve(second, client, NOW), Reservation)


async def test_new_account_is_seeded_with_history_once(clean: Server) -> None:
    """What SQL knew before Redis came counts, from the first tower that asks and from no other."""
    client = _client(tokens_per_minute=100, requests_per_minute=10, money_per_month=1.0)

    def history(account: Account) -> None:
        account.requests_minute.add(NOW - 10, 3)
        account.book(NOW - 10, 60, 0, 0.5)

    async with _towers(clean, 2) as towers:
        for tower in towers:
            tower.history = history
        assert isinstance(await _reserve(towers[0], client, NOW, 41), LimitRefusal)
        held = await _reserve(towers[1], client, NOW, 40)
        assert isinstance(held, SharedReservation)
        view = held.views[0]
        assert (view.requests_minute.used(NOW), view.tokens_minute.used(NOW), view.spent) == (4, 60, 0.5)


async def test_without_limits_redis_is_not_asked(clean: Server) -> None:
    """A key without limits costs no round trip."""
    async with _towers(clean, 1) as (tower,):
        before = clean.command("INFO", "commandstats").count("evalsha")
        held = await _reserve(tower, Client(id="k", name="x"), NOW, 10)
        assert isinstance(held, Reservation)
        tower.settle(held, 5, 0, 5, 0, NOW)
        assert clean.command("INFO", "commandstats").count("evalsha") == before


async def test_redis_that_dies_leaves_limits_per_tower(clean: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests go on and are limited by what this tower saw; when Redis is back it hears what it missed."""
    monkeypatch.setattr(shared, "HEARTBEAT_SECONDS", 0.05)
    client = _client(requests_per_minute=3, tokens_per_minute=1000)
    async with _towers(clean, 1) as (tower,):
        now = time.time()
        held = await _reserve(tower, client, now, 500)
        clean.stop()
        tower.settle(held, 200, 0, 0, 0, now)
        await _told(tower)
        for _ in range(2):
            assert isinstance(await _reserve(tower, client, now, 100), Reservation)
        refusal = await _reserve(tower, client, now, 100)
        assert isinstance(refusal, LimitRefusal)
        assert refusal.reason == "requests_per_minute"
        assert tower.errors > 0
        assert len(tower._untold) == 1
        clean.start()
        await _until(lambda: not tower._untold)
        assert clean.command("HVALS", "lmtower:limits:key:key_1:tm") == "200"


async def test_ledger_with_redis_starts_without_redis(tmp_path: Path) -> None:
    """A tower must come up when Redis is down."""
    ledger = Ledger.open(tmp_path, None, f"unix://{tmp_path}/nothing.sock")
    assert ledger.limits.shared
    await ledger.start()
    client = _client(requests_per_minute=1)
    assert isinstance(await ledger.limits.reserve_shared(client, "plan", None, None, 0), Reservation)
    assert isinstance(await ledger.limits.reserve_shared(client, "plan", None, None, 0), LimitRefusal)
    await ledger.close()


async def test_unusable_url_is_a_ledger_error() -> None:
    """The message says what to write."""
    with pytest.raises(LedgerError, match="redis://HOST"):
        await SharedLimits("http://x").start()
