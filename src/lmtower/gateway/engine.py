"""One engine as the gateway sees it: its replicas, their health and circuits, its slots."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal

from lmtower.gateway.admission import Admission
from lmtower.gateway.pool import Pool
from lmtower.gateway.routing import Candidate, choose
from lmtower.gateway.upstream import Call, UpstreamLost
from lmtower.gateway.upstreams import Upstream
from lmtower.logs import get_logger

log = get_logger(__name__)

Condition = Literal["stopped", "starting", "ready", "draining", "failed"]

FAILURES_TO_OPEN = 3
OPEN_SECONDS = 1.0
OPEN_SECONDS_MOST = 15.0
CHECK_SECONDS = 5.0
CHECK_SECONDS_UNHEALTHY = 0.5
CHECK_TIMEOUT = 5.0


class Circuit:
    """Keeps requests off a replica that fails: open after three failures in a row; then whoever comes next decides,
    or the next health check."""

    def __init__(self) -> None:
        self.failures = 0
        """In a row."""
        self._open_until = 0.0
        self._open_seconds = OPEN_SECONDS

    def state(self, now: float) -> Literal["closed", "open", "half_open"]:
        """closed: requests pass. open: none. half_open: the next one decides."""
        if self.failures < FAILURES_TO_OPEN:
            return "closed"
        return "open" if now < self._open_until else "half_open"

    def failed(self, now: float) -> None:
        """A connection could not be made or broke."""
        self.failures += 1
        if self.failures >= FAILURES_TO_OPEN:
            self._open_until = now + self._open_seconds
            self._open_seconds = min(OPEN_SECONDS_MOST, self._open_seconds * 2)

    def succeeded(self) -> None:
        """An answer came, whatever its status: the replica is there."""
        self.failures = 0
        self._open_seconds = OPEN_SECONDS


class Replica:
    """One running copy of an engine."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.pool = Pool(upstream.url, upstream.api_key)
        self.circuit = Circuit()
        self.in_flight = 0
        self.healthy: bool | None = None
        """What the last health checks said; None before the first."""
        self.misses = 0
        """Checks in a row that failed."""
        self.ready_since = 0.0

    def usable(self, now: float) -> bool:
        """Whether requests may go there. A replica that was not checked yet gets the benefit of the doubt."""
        return self.healthy is not False and self.circuit.state(now) != "open"

    async def check(self) -> bool:
        """Ask for health once."""
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                call = await self.pool.call(self.upstream.health_path, (), method="GET")
                try:
                    await call.body()
                finally:
                    call.close()
        except (UpstreamLost, TimeoutError):
            return False
        return call.status == 200


class Engine:
    """The replicas of one engine and the slots that they share. ``absent`` tells of a URL whether whoever answers
    there is a stranger, because the engine is known not to run.
    """

    def __init__(
        self, upstreams: Sequence[Upstream], clock: Callable[[], float], absent: Callable[[str], bool]
    ) -> None:
        self.name = upstreams[0].engine
        self.upstreams = tuple(upstreams)
        self.replicas = tuple(Replica(upstream) for upstream in upstreams)
        self.admission = Admission(sum(upstream.slots for upstream in upstreams), upstreams[0].lanes, clock)
        self.bytes_per_token = 4.0
        """Learned from finished requests; estimates the input of those that were cancelled before usage came."""
        self._clock = clock
        self._absent = absent
        self._checks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin the health checks."""
        self._checks = [asyncio.create_task(self._watch(replica)) for replica in self.replicas]

    def close(self) -> None:
        """Stop the checks and close every connection."""
        for task in self._checks:
            task.cancel()
        for replica in self.replicas:
            replica.pool.close()

    def calls(self) -> list[Call]:
        """The calls that run now."""
        return [call for replica in self.replicas for call in replica.pool.calls()]

    def condition(self) -> Condition:
        """The engine's state from its replicas: ready when one of them is."""
        if any(replica.healthy for replica in self.replicas):
            return "ready"
        return "starting" if any(replica.healthy is None for replica in self.replicas) else "failed"

    def choose(self, key: bytes | None, tried: frozenset[str]) -> Replica | None:
        """The replica for the next request; None when none is usable."""
        replica = self.replicas[0]
        if len(self.replicas) == 1 and replica.healthy and not replica.circuit.failures and not tried:
            return replica  # the usual case
        now = self._clock()
        candidates = [
            Candidate(r.upstream.replica, r.upstream.slots - r.in_flight, r.upstream.slots, r.usable(now))
            for r in self.replicas
        ]
        index = choose(candidates, key, tried)
        return None if index is None else self.replicas[index]

    def learn(self, prompt_bytes: int, input_tokens: int) -> None:
        """Take a finished request into the average of bytes per token."""
        if input_tokens > 0:
            self.bytes_per_token += (prompt_bytes / input_tokens - self.bytes_per_token) * 0.05

    def resize(self) -> None:
        """Offer the slots of the usable replicas; all of them when none is, so that requests fail at once."""
        now = self._clock()
        slots = sum(replica.upstream.slots for replica in self.replicas if replica.usable(now))
        slots = slots or sum(replica.upstream.slots for replica in self.replicas)
        if slots != self.admission.slots:
            self.admission.resize(slots)

    async def look(self) -> None:
        """Check every replica now. Whoever starts an engine can use it then, and not only after its next check."""
        await asyncio.gather(*map(self._look, self.replicas))

    async def _watch(self, replica: Replica) -> None:
        while True:
            await self._look(replica)
            well = replica.healthy and not replica.misses
            await asyncio.sleep(CHECK_SECONDS if well else CHECK_SECONDS_UNHEALTHY)

    async def _look(self, replica: Replica) -> None:
        absent = self._absent(replica.upstream.url)
        if not absent and await replica.check():
            replica.misses = 0
            if not replica.healthy:
                log.info("engine ready", engine=self.name, replica=replica.upstream.replica)
                replica.ready_since = self._clock()
            replica.healthy = True
            replica.circuit.succeeded()
        else:
            replica.misses += 2 if absent else 1
            if replica.healthy and replica.misses >= 2:
                log.warning("engine lost", engine=self.name, replica=replica.upstream.replica)
            if replica.misses >= 2:
                replica.healthy = False
        self.resize()
