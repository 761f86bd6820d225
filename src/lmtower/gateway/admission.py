"""Who may run now: lanes, reserved slots, bounded queues, ageing, deadlines. See design.md beside this file."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lmtower.config.types import LANES, Lane, Lanes
from lmtower.wire.faults import Fault

RANK: Mapping[Lane, int] = {lane: rank for rank, lane in enumerate(LANES)}


class Head(NamedTuple):
    """The first waiter of a lane: what the decision needs to know of it."""

    lane: Lane
    waiting_since: float
    """When it came, or when its lane last got a slot, whichever is later."""


def free_for(lane: Lane, running: Mapping[Lane, int], slots: int, reserve: Mapping[Lane, int]) -> int:
    """Slots that a request of this lane may take: the free ones less those still reserved for more urgent lanes."""
    free = slots - sum(running.values())
    rank = RANK[lane]
    kept = sum(max(0, reserve.get(urgent, 0) - running[urgent]) for urgent in LANES[:rank])
    return free - kept


def pick(
    heads: Sequence[Head],
    running: Mapping[Lane, int],
    slots: int,
    reserve: Mapping[Lane, int],
    ageing: float,
    now: float,
) -> Lane | None:
    """The lane whose first waiter gets the next slot; None when none may.

    A head's rank improves by one for every ``ageing`` seconds that its lane has been passed over; at equal rank the
    longer wait wins. A lane that gets slots regularly never ages, so batch cannot outrank interactive work merely
    by having a long queue, and still gets a slot when more urgent lanes would starve it.
    """
    best: tuple[float, float] | None = None
    chosen: Lane | None = None
    for head in heads:
        if free_for(head.lane, running, slots, reserve) <= 0:
            continue
        waited = now - head.waiting_since
        rank = max(0.0, RANK[head.lane] - (waited // ageing if ageing > 0 else math.inf))
        key = (rank, head.waiting_since)
        if best is None or key < best:
            best, chosen = key, head.lane
    return chosen


def retry_after(ahead: int, slots: int, service_seconds: float) -> int:
    """Whole seconds until the queue ahead should have drained, 1 to 60."""
    return max(1, min(60, math.ceil(ahead * service_seconds / max(1, slots))))


REFUSALS = ("full", "deadline", "held")


class _Waiter:
    __slots__ = ("future", "lane", "since", "timer")

    def __init__(self, lane: Lane, since: float, future: asyncio.Future[None]) -> None:
        self.lane = lane
        self.since = since
        self.future = future
        self.timer: asyncio.TimerHandle | None = None


class Admission:
    """The slots of one engine and who waits for them. Everything happens on the event loop."""

    def __init__(self, slots: int, lanes: Lanes, clock: Callable[[], float]) -> None:
        self.slots = slots
        self.lanes = lanes
        self.running: dict[Lane, int] = dict.fromkeys(LANES, 0)
        self.held: frozenset[Lane] = frozenset()
        self.refusals: dict[tuple[str, str], int] = {(lane, why): 0 for lane in LANES for why in REFUSALS}
        """Requests that were not admitted, by lane and reason; counted here, read by metrics."""
        self._clock = clock
        self._waiting: dict[Lane, deque[_Waiter]] = {lane: deque() for lane in LANES}
        self._granted_at: dict[Lane, float] = dict.fromkeys(LANES, -math.inf)
        self._in_flight = 0
        self._queued = 0
        self._service_seconds = 1.0
        self._idle: asyncio.Event | None = None

    @property
    def in_flight(self) -> int:
        """Requests that run."""
        return self._in_flight

    def queued(self) -> dict[str, int]:
        """Requests that wait, by lane."""
        return {str(lane): len(queue) for lane, queue in self._waiting.items()}

    def try_enter(self, lane: Lane, now: float) -> bool:
        """Take a slot if one is free and nobody waits: the usual case, without a future."""
        if self._queued or lane in self.held:
            return False
        reserve = self.lanes.reserve
        free = free_for(lane, self.running, self.slots, reserve) if reserve else self.slots - self._in_flight
        if free <= 0:
            return False
        self._grant(lane, now)
        return True

    async def enter(self, lane: Lane, patience: float | None = None) -> None:
        """Wait for a slot, at most ``lanes.deadline`` or the client's own ``patience`` (seconds).

        Raises Fault(429) when the lane's queue is full or the deadline passes, Fault(503) when the lane is held back
        because its node is short of memory. Cancelling leaves the queue.
        """
        if self.try_enter(lane, self._clock()):
            return
        if lane in self.held:
            self.refusals[lane, "held"] += 1
            raise Fault(
                503, "lane_held", "This kind of request is paused: the node is short of memory.", retry_after=30
            )
        queue = self._waiting[lane]
        if len(queue) >= self.lanes.queue:
            self.refusals[lane, "full"] += 1
            raise self._full(f"{len(queue)} requests already wait in the lane {lane!r}.")
        loop = asyncio.get_running_loop()
        waiter = _Waiter(lane, self._clock(), loop.create_future())
        limit = self.lanes.deadline if patience is None else min(self.lanes.deadline, patience)
        waiter.timer = loop.call_later(limit, self._expire, waiter)
        queue.append(waiter)
        self._queued += 1
        self.wake()  # those who wait may be of lanes that this one passes: a slot reserved for it can be free
        try:
            await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled():
                # granted in the same turn of the loop in which the client left
                self.leave(lane, None)
            else:
                self._remove(waiter)
            raise
        finally:
            waiter.timer.cancel()

    def leave(self, lane: Lane, service_seconds: float | None) -> None:
        """Give a slot back. ``service_seconds`` is how long it was used, None when it was not."""
        self.running[lane] -= 1
        self._in_flight -= 1
        if service_seconds is not None:
            self._service_seconds += (service_seconds - self._service_seconds) * 0.1
        if self._queued:
            self.wake()
        elif self._idle is not None and not self._in_flight:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until nothing runs and nobody waits."""
        while self._in_flight or self._queued:
            self._idle = asyncio.Event()
            await self._idle.wait()

    def resize(self, slots: int, lanes: Lanes | None = None) -> None:
        """The engine has more or fewer slots now (a replica came or went, the tower file changed)."""
        self.slots = slots
        self.lanes = lanes or self.lanes
        self.wake()

    def hold(self, lanes: frozenset[Lane]) -> None:
        """Admit nothing of these lanes until told otherwise; those who wait keep waiting."""
        self.held = lanes
        self.wake()

    def wake(self) -> None:
        """Hand out whatever slots are free."""
        while self._queued:
            heads = [
                Head(lane, max(queue[0].since, self._granted_at[lane]))
                for lane, queue in self._waiting.items()
                if queue and lane not in self.held
            ]
            now = self._clock()
            lane = pick(heads, self.running, self.slots, self.lanes.reserve, self.lanes.ageing, now)
            if lane is None:
                return
            waiter = self._waiting[lane].popleft()
            self._queued -= 1
            if not waiter.future.done():
                self._grant(lane, now)
                waiter.future.set_result(None)

    def _grant(self, lane: Lane, now: float) -> None:
        self.running[lane] += 1
        self._in_flight += 1
        self._granted_at[lane] = now

    def _remove(self, waiter: _Waiter) -> None:
        queue = self._waiting[waiter.lane]
        if waiter in queue:
            queue.remove(waiter)
            self._queued -= 1
            if self._idle is not None and not self._in_flight and not self._queued:
                self._idle.set()

    def _expire(self, waiter: _Waiter) -> None:
        if not waiter.future.done():
            self._remove(waiter)
            self.refusals[waiter.lane, "deadline"] += 1
            waiter.future.set_exception(self._full("No slot became free in time."))

    def _full(self, reason: str) -> Fault:
        ahead = self._queued + 1
        return Fault(
            429,
            "rate_limit_exceeded",
            f"The engine is busy. {reason} Please try again later.",
            retry_after=retry_after(ahead, self.slots, self._service_seconds),
        )
