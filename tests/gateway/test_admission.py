"""Admission: the two decisions as tables, the queue's behaviour, and a simulation of a saturated engine."""

from __future__ import annotations

import asyncio
import heapq
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtower.config.types import LANES, Lane, Lanes
from lmtower.gateway.admission import Admission, Head, free_for, pick, retry_after
from lmtower.wire.faults import Fault
from tests.gateway.support import until

NONE: dict[Lane, int] = dict.fromkeys(LANES, 0)


@pytest.mark.parametrize(
    ("lane", "running", "reserve", "expected"),
    [
        ("batch", {}, {}, 4),
        ("batch", {"batch": 4}, {}, 0),
        ("batch", {"batch": 2}, {"interactive": 1, "agent": 1}, 0),
        ("default", {"batch": 2}, {"interactive": 1, "agent": 1}, 0),
        ("agent", {"batch": 2}, {"interactive": 1, "agent": 1}, 1),
        ("interactive", {"batch": 2}, {"interactive": 1, "agent": 1}, 2),
        ("batch", {"interactive": 1, "batch": 1}, {"interactive": 1}, 2),
        ("batch", {"interactive": 3}, {"interactive": 1}, 1),
    ],
)
def test_free_for_keeps_reserved_slots(lane: Lane, running: Any, reserve: Any, expected: int) -> None:
    """Slots reserved for more urgent lanes are kept until those lanes use them."""
    assert free_for(lane, NONE | running, 4, reserve) == expected


@pytest.mark.parametrize(
    ("heads", "running", "now", "expected"),
    [
        ([], {}, 0, None),
        ([Head("batch", 0), Head("interactive", 5)], {}, 5, "interactive"),
        ([Head("batch", 0), Head("default", 5)], {}, 29, "default"),
        ([Head("batch", 0), Head("interactive", 44)], {}, 45, "batch"),
        ([Head("batch", 0), Head("interactive", 44)], {}, 44, "interactive"),
        ([Head("batch", 0)], {"batch": 4}, 100, None),
    ],
)
def test_pick_chooses_urgent_first_and_starved_lanes_eventually(
    heads: list[Head], running: Any, now: float, expected: Lane | None
) -> None:
    """Urgency decides until a lane has been passed over for its distance times the ageing period."""
    assert pick(heads, NONE | running, 4, {}, 15, now) == expected


def test_retry_after_is_between_1_and_60() -> None:
    """Never zero, never more than Claude Code waits for."""
    assert [retry_after(1, 4, 0.1), retry_after(10, 2, 3.0), retry_after(500, 1, 9.0)] == [1, 15, 60]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def admission(slots: int = 1, **lanes: Any) -> tuple[Admission, Clock]:
    clock = Clock()
    return Admission(slots, Lanes(**lanes), clock), clock


async def test_slot_goes_to_the_most_urgent_waiter() -> None:
    """Whoever came first, the interactive request runs next."""
    gate, _ = admission()
    assert gate.try_enter("batch", 0.0)
    order: list[str] = []

    async def wait(lane: Lane) -> None:
        await gate.enter(lane)
        order.append(lane)
        gate.leave(lane, 0.1)

    tasks = [asyncio.create_task(wait(lane)) for lane in ("batch", "default", "agent", "interactive")]
    await until(lambda: sum(gate.queued().values()) == 4)
    gate.leave("batch", 0.1)
    await asyncio.gather(*tasks)
    assert order == ["interactive", "agent", "default", "batch"]
    assert gate.in_flight == 0


async def test_full_queue_and_passed_deadline_are_429() -> None:
    """One waiter too many is refused at once, one that waits too long when its time is up."""
    gate, _ = admission(queue=1, deadline=0.02)
    assert gate.try_enter("default", 0.0)
    first = asyncio.create_task(gate.enter("default"))
    await until(lambda: gate.queued()["default"] == 1)
    with pytest.raises(Fault, match="already wait") as full:
        await gate.enter("default")
    with pytest.raises(Fault, match="No slot became free") as late:
        await first
    assert [full.value.status, late.value.status] == [429, 429]
    assert (gate.refusals["default", "full"], gate.refusals["default", "deadline"]) == (1, 1)
    assert gate.queued()["default"] == 0


async def test_cancelled_waiter_gives_back_what_it_was_just_granted() -> None:
    """A client that leaves in the same turn of the loop in which it got its slot does not keep it."""
    gate, _ = admission()
    assert gate.try_enter("default", 0.0)
    waiting = asyncio.create_task(gate.enter("default"))
    await until(lambda: gate.queued()["default"] == 1)
    gate.leave("default", 0.1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert gate.in_flight == 0
    await gate.idle()


async def test_held_lane_is_refused_and_waits_continue_after_release() -> None:
    """While the watchdog holds a lane new requests are refused and waiting ones stay."""
    gate, _ = admission(2)
    gate.hold(frozenset(("batch",)))
    with pytest.raises(Fault) as held:
        await gate.enter("batch")
    assert (held.value.status, held.value.code) == (503, "lane_held")
    assert gate.try_enter("default", 0.0)
    gate.hold(frozenset())
    assert gate.try_enter("batch", 0.0)


async def test_reserved_slot_is_taken_at_once_although_less_urgent_requests_wait() -> None:
    """Batch waits because the free slot is reserved; the interactive request it is reserved for does not wait."""
    gate, _ = admission(2, reserve={"interactive": 1})
    assert gate.try_enter("batch", 0.0)
    batch = asyncio.create_task(gate.enter("batch"))
    await until(lambda: gate.queued()["batch"] == 1)
    await asyncio.wait_for(gate.enter("interactive"), 5)
    assert gate.queued()["batch"] == 1
    gate.leave("interactive", 0.1)
    assert not batch.done()
    gate.leave("batch", 0.1)
    await asyncio.wait_for(batch, 5)


async def test_held_waiters_do_not_stop_other_lanes() -> None:
    """Requests of a held lane that wait do not keep a free slot from others."""
    gate, _ = admission(1)
    assert gate.try_enter("default", 0.0)
    batch = asyncio.create_task(gate.enter("batch"))
    await until(lambda: gate.queued()["batch"] == 1)
    gate.hold(frozenset(("batch",)))
    gate.leave("default", 0.1)
    await asyncio.wait_for(gate.enter("default"), 5)
    gate.leave("default", 0.1)
    gate.hold(frozenset())
    await asyncio.wait_for(batch, 5)


def simulate(arrivals: list[tuple[float, Lane]], slots: int, service: float) -> dict[Lane, list[float]]:
    """Queue times by lane of an engine that serves every request in ``service`` seconds, in simulated time."""
    running, waiting = dict(NONE), {lane: [] for lane in LANES}
    granted = dict.fromkeys(LANES, float("-inf"))
    ends: list[tuple[float, Lane]] = []
    queue_times: dict[Lane, list[float]] = {lane: [] for lane in LANES}
    arrivals = sorted(arrivals, reverse=True)
    now = 0.0

    def fill() -> None:
        while True:
            heads = [Head(lane, max(queue[0], granted[lane])) for lane, queue in waiting.items() if queue]
            lane = pick(heads, running, slots, {}, 15.0, now)
            if lane is None:
                return
            queue_times[lane].append(now - waiting[lane].pop(0))
            running[lane] += 1
            granted[lane] = now
            heapq.heappush(ends, (now + service, lane))

    while arrivals or ends:
        if ends and (not arrivals or ends[0][0] <= arrivals[-1][0]):
            now, lane = heapq.heappop(ends)
            running[lane] -= 1
        else:
            now, lane = arrivals.pop()
            waiting[lane].append(now)
        fill()
    return queue_times


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_simulation_interactive_stays_fast_while_batch_saturates_and_progresses(slots: int) -> None:
    """Interactive p99 queue time stays under 1.2 service times of batch; every batch request is served."""
    dice = random.Random(7)
    service = 10.0
    batch: list[tuple[float, Lane]] = [(0.0, "batch")] * 400
    interactive: list[tuple[float, Lane]] = []
    at = 0.0
    while at < 400 * service / slots:
        at += service * dice.uniform(1.5, 4)  # people, one after the other, at random moments
        interactive.append((at, "interactive"))
    times = simulate(batch + interactive, slots, service)
    p99 = sorted(times["interactive"])[int(len(times["interactive"]) * 0.99)]
    assert p99 < 1.2 * service
    assert len(times["batch"]) == 400


def test_simulation_batch_progresses_while_interactive_saturates() -> None:
    """An endless stream of interactive requests still leaves batch a slot about every three ageing periods."""
    interactive: list[tuple[float, Lane]] = [(n * 0.5, "interactive") for n in range(2000)]
    times = simulate([*interactive, *[(0.0, "batch")] * 10], 1, 1.0)
    assert len(times["batch"]) == 10
    assert max(times["batch"]) < 10 * 48


@given(st.lists(st.tuples(st.floats(0, 50), st.sampled_from(LANES)), max_size=60), st.integers(1, 4))
def test_simulation_serves_everybody_once(arrivals: list[tuple[float, Lane]], slots: int) -> None:
    """Whatever arrives is served exactly once, first come first served within its lane."""
    times = simulate(arrivals, slots, 1.0)
    assert sum(len(values) for values in times.values()) == len(arrivals)
