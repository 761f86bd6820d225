"""Which replica gets a request."""

from __future__ import annotations

import asyncio
from pathlib import Path

from lmtower.gateway.routing import Candidate, choose
from tests.fakes.engine import FakeEngine
from tests.gateway.support import running, tower_of, upstream


def candidates(*free: int) -> list[Candidate]:
    return [Candidate(f"r{n}", count, 4, count >= 0) for n, count in enumerate(free)]


def test_same_key_goes_to_the_same_replica_and_keys_spread() -> None:
    """A key always has the same home, and many keys use all homes."""
    homes = [choose(candidates(4, 4, 4), b"%d" % n) for n in range(300)]
    assert homes == [choose(candidates(4, 4, 4), b"%d" % n) for n in range(300)]
    assert all(60 < homes.count(replica) < 140 for replica in range(3))


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
