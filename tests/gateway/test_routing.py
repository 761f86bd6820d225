"""Which replica gets a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from lmtower.gateway.routing import Candidate, choose, prefix_key
from tests.fakes.engine import FakeEngine
from tests.gateway.support import Running, running, tower_of, until, upstream


def candidates(*free: int) -> list[Candidate]:
    return [Candidate(f"r{n}", count, 4, count >= 0) for n, count in enumerate(free)]


def test_same_key_goes_to_the_same_replica_and_keys_spread() -> None:
    """A key always has the same home, and many keys use all homes."""
    homes = [choose(candidates(4, 4, 4), b"%d" % n) for n in range(300)]
    assert homes == [choose(candidates(4, 4, 4), b"%d" % n) for n in range(300)]
    assert all(60 < homes.count(replica) < 140 for replica in range(3))


def test_long_keys_differ_at_their_ends_too() -> None:
    """Session ids begin alike for a long while in some programs."""
    homes = [choose(candidates(4, 4), b"account-" * 20 + b"%d" % n) for n in range(200)]
    assert 60 < homes.count(0) < 140


SYSTEM = b'{"role":"system","content":"' + b"You are helpful. " * 40 + b'"},'


@pytest.mark.parametrize(
    ("protocol", "body"),
    [
        ("chat", b'{"model":"m","messages":[' + SYSTEM + b'{"role":"user","content":"USER"}MORE],"tools":[]}'),
        ("chat", b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "USER"}]}MORE]}'),
        ("messages", b'{"messages":[{"role":"user","content":"USER"}MORE,{"input":{"a":"USER"}}]}'),
        ("responses", b'{"instructions":"x","input":[{"role":"user","content":"USER"}MORE]}'),
    ],
)
def test_prefix_key_is_the_conversations_own_in_every_turn(protocol: str, body: bytes) -> None:
    """It does not change when the conversation goes on, and does when it begins with another message."""
    turns = (b"", b',{"role":"assistant","content":"b"}', b',{"role":"assistant","content":"b"},{"role":"user"}')

    def keys(text: bytes) -> set[bytes]:
        return {prefix_key(protocol, "m", body.replace(b"MORE", turn).replace(b"USER", text)) for turn in turns}

    assert len(keys(b"one")) == 1
    assert len(keys(b"one") | keys(b"two") | keys(b"long " * 100)) == 3


def test_losing_a_replica_moves_only_its_own_keys() -> None:
    """Keys whose home is still there stay at home."""
    before = [choose(candidates(4, 4, 4), b"%d" % n) for n in range(200)]
    after = [choose(candidates(4, -1, 4), b"%d" % n) for n in range(200)]
    assert all(old == new for old, new in zip(before, after, strict=True) if old != 1)
    assert 1 not in after


def test_busy_home_falls_back_and_no_replica_is_none() -> None:
    """A home without a free slot is passed over; without any usable replica there is no choice."""
    home = choose(candidates(4, 4), b"key")
    assert home is not None
    busy = [Candidate(f"r{n}", 0 if n == home else 2, 4, True) for n in range(2)]
    assert choose(busy, b"key") == 1 - home
    assert choose(candidates(-1, -1), b"key") is None
    assert choose(candidates(1, 3), None) == 1
    assert choose(candidates(4, 4), None, frozenset(("r0",))) == 1


@asynccontextmanager
async def two(tmp_path: Path, **script: Any) -> AsyncIterator[tuple[Running, FakeEngine, FakeEngine]]:
    """Two replicas; the home of the session that asks follows the script, once."""
    with FakeEngine("m") as left, FakeEngine("m") as right:
        upstreams = [upstream(left, replica="left"), upstream(right, replica="right")]
        async with running(tmp_path, left, tower=tower_of(left), upstreams=upstreams) as tower:
            tower.client.headers["x-session-id"] = "session-1"
            await tower.chat()
            home, other = (left, right) if left.to("/chat/completions") else (right, left)
            home.script(times=1, **script)
            yield tower, home, other


def connect_anew(tower: Running) -> None:
    """A kept connection could have been closed before the engine saw anything: such a request is sent again there."""
    for replica in tower.gateway.snapshot.engines["big"].replicas:
        replica.pool.drop_idle()


def asked(*engines: FakeEngine) -> list[int]:
    return [len(engine.to("/chat/completions")) for engine in engines]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [{"die_after": -1}, {"status": 503, "error": "loading"}])
async def test_replica_that_gives_no_answer_is_passed_over(tmp_path: Path, script: Any, stream: bool) -> None:
    """It dies before its first byte, or says that it is not ready: the other one answers."""
    async with two(tmp_path, **script) as (tower, home, other):
        connect_anew(tower)
        answer = await tower.chat(stream=stream)
        assert answer.status_code == 200
        assert asked(home, other) == [2, 1]
        await tower.chat()
        assert asked(home, other) == [3, 1]


async def test_what_killed_two_replicas_does_not_get_a_third(tmp_path: Path) -> None:
    """A request that engines die of takes no more of them, however many there are."""
    with FakeEngine("m") as first, FakeEngine("m") as second, FakeEngine("m") as third:
        engines = (first, second, third)
        for engine in engines:
            engine.script(die_after=-1)
        upstreams = [upstream(engine, replica=str(number)) for number, engine in enumerate(engines)]
        async with running(tmp_path, first, tower=tower_of(first), upstreams=upstreams) as tower:
            await until(lambda: all(one.healthy for one in tower.gateway.snapshot.engines["big"].replicas))
            connect_anew(tower)
            answer = await tower.chat()
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_unavailable")
    assert sorted(asked(*engines)) == [0, 1, 1]


@pytest.mark.parametrize("stream", [False, True])
async def test_all_replicas_not_ready_is_503(tmp_path: Path, stream: bool) -> None:
    """Each was asked once; the client is told when to come back."""
    async with two(tmp_path, status=503, error="loading") as (tower, home, other):
        other.script(times=1, status=503, error="loading")
        answer = await tower.chat(stream=stream)
        assert asked(home, other) == [2, 1]
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


async def test_answer_that_broke_off_is_not_asked_for_again(tmp_path: Path) -> None:
    """After the first byte the other replica is left alone."""
    async with two(tmp_path, text="a b c", die_after=2) as (tower, home, other):
        with pytest.raises(httpx.RemoteProtocolError):
            await tower.chat(stream=True)
        assert asked(home, other) == [2, 0]


@pytest.mark.parametrize("priorities", [True, False])
async def test_engine_that_schedules_by_priority_is_told_the_lane(tmp_path: Path, priorities: bool) -> None:
    """Lower is sooner; what the client says does not count. Another engine is told nothing."""
    with FakeEngine() as engine:
        upstreams = [upstream(engine, priorities=priorities)]
        async with running(tmp_path, engine, upstreams=upstreams) as tower:
            for persona in ("plan", "agent"):
                assert (await tower.chat(persona, priority=-9)).status_code == 200
    sent = [request.json.get("priority") for request in engine.to("/chat/completions")]
    assert sent == ([2, 1] if priorities else [None, None])


async def test_session_sticks_to_its_replica_and_moves_when_it_dies(tmp_path: Path) -> None:
    """Requests of one session reach one replica; when that one dies, the next request succeeds on the other."""
    with FakeEngine("m") as left, FakeEngine("m") as right:
        upstreams = [upstream(left, replica="left"), upstream(right, replica="right")]
        async with running(tmp_path, left, tower=tower_of(left), upstreams=upstreams) as tower:
            tower.client.headers["x-claude-code-session-id"] = "session-1"
            for _ in range(4):
                assert (await tower.chat()).status_code == 200
            chats = [sum(r.path.endswith("completions") for r in e.requests) for e in (left, right)]
            assert sorted(chats) == [0, 4]
            (left if chats[0] else right).crash()
            answers = await asyncio.gather(*[tower.chat() for _ in range(3)])
            assert [a.status_code for a in answers] == [200] * 3
