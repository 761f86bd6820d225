"""Apply: carry out a diff, strictly one engine at a time on each node, and say how long every phase took.

For each engine: fetch its image, wait until the node's memory has settled and suffices, start it, wait until it
answers, compare the memory it really took with the plan, warm it up. An engine that fails is rolled back alone;
the others stay and the rest of the diff goes on. Nodes work side by side.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

from lmtower.engines import ray
from lmtower.engines.loading import stage
from lmtower.engines.shapes import WarmRequest
from lmtower.engines.spec import LaunchSpec
from lmtower.errors import EngineError, NodeAway, PlanError, TowerError
from lmtower.nodes.diff import Step
from lmtower.nodes.drivers import Driver, Progress
from lmtower.nodes.http import healthy, listens
from lmtower.nodes.memory import MemoryProbe, Settled, settle
from lmtower.nodes.supervisor import Supervisor
from lmtower.nodes.warmup import warm_up
from lmtower.plan.observe import compare, read_log, rows
from lmtower.plan.types import EnginePlan

_GIB = 1024**3
_KEEP_CHECKS = 3
_LOG_LINES = 2000
_FIGURES = ("weights", "kv cache tokens", "max concurrency")
Settle = Callable[[MemoryProbe], Awaitable[Settled]]


@dataclass(frozen=True, slots=True)
class Need:
    """What the plan says of one engine: bytes it takes, bytes that must stay free, and how it is warmed up."""

    memory_bytes: int = 0
    reserve_bytes: int = 0
    warm_requests: tuple[WarmRequest, ...] = ()
    plan: EnginePlan | None = None
    """What the engine's own log is compared with; None: nothing was computed for it."""
    warm_later: bool = False
    """Nothing is compiled there: serve at once, and send the prefixes meanwhile."""


@dataclass(frozen=True, slots=True)
class Event:
    """Progress for people. ``seconds`` is set when the phase is done, ``progress`` while it fetches, ``elapsed`` when
    nothing new can be said but that it goes on.
    """

    engine: str
    node: str
    phase: str
    detail: str = ""
    seconds: float | None = None
    progress: Progress | None = None
    elapsed: float | None = None


@dataclass(slots=True)
class Outcome:
    """Engines that were started, and those that were not, with the reason."""

    started: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class Apply:
    """One run of ``lmtower up``. ``needs`` are by engine, ``probes`` by node and engine; what lacks is not checked."""

    def __init__(
        self,
        drivers: Mapping[str, Driver],
        supervisor: Supervisor,
        *,
        needs: Mapping[str, Need],
        probes: Mapping[tuple[str, str], MemoryProbe],
        report: Callable[[Event], None],
        settle_memory: Settle = settle,
        tell_seconds: float = 3.0,
        join_seconds: float = 60.0,
    ) -> None:
        self._drivers = drivers
        self._supervisor = supervisor
        self._needs = needs
        self._probes = probes
        self._report = report
        self._settle = settle_memory
        self._tell_seconds = tell_seconds
        self._join_seconds = join_seconds

    async def run(self, steps: Sequence[Step]) -> Outcome:
        """Carry out the steps. Never raises for one engine: what failed is in the outcome."""
        outcome = Outcome()
        lanes = _lanes(steps)
        await asyncio.gather(*(self._run_node(lane, outcome) for lane in lanes))
        return outcome

    async def _run_node(self, steps: Sequence[Step], outcome: Outcome) -> None:
        for group in _together(steps):
            first = group[0]
            try:
                await (self._run_step(first) if len(group) == 1 else self._start_spanning(group))
            except TowerError as error:
                outcome.failed[first.engine] = str(error)
                if first.spec is not None:
                    # a node that is away is watched: its engines are started when it is back
                    away = isinstance(error, NodeAway) and len(group) == 1
                    self._supervisor.adopt(first.spec, "starting" if away else "failed", str(error))
                self._report(Event(first.engine, first.node, "failed", str(error)))
            else:
                if any(step.action in ("start", "replace") for step in group):
                    outcome.started.append(first.engine)

    async def _run_step(self, step: Step) -> None:
        if step.action == "keep" and step.spec is not None:
            await self._keep(step, step.spec)
        elif step.action == "stop":
            with self._phase(step, "stop"):
                await self._supervisor.drain(step.node, step.name)
        elif step.spec is not None:
            await self._start(step, step.spec)

    async def _keep(self, step: Step, spec: LaunchSpec) -> None:
        """Watch what runs. What an interrupted ``up`` left loading is waited for, as if this one had started it."""
        if spec.health_path is None or await _answers(spec):
            self._supervisor.adopt(spec)
            return
        with self._phase(step, "load", "it was left loading"):
            async with self._telling(step, self._drivers[spec.node]):
                await self._supervisor.resume(spec)
        await self._warm(step, spec)

    async def _start(self, step: Step, spec: LaunchSpec) -> None:
        before = await self._make_ready(step, spec)
        with self._phase(step, "load"):
            async with self._telling(step, self._drivers[spec.node]):
                await self._supervisor.launch(spec)
        await self._compare_memory(step, before)
        await self._compare_log(step)
        await self._warm(step, spec)

    async def _start_spanning(self, steps: Sequence[Step]) -> None:
        """One engine over several nodes: its head answers only when the GPUs of all workers have joined."""
        parts = [(step, step.spec) for step in steps if step.spec is not None]
        before = [await self._make_ready(step, spec) for step, spec in parts]
        (head_step, head), *workers = parts
        try:
            with self._phase(head_step, "load"):
                async with self._telling(head_step, self._drivers[head.node]):
                    await self._supervisor.begin(head)
                    await _listening(head.host, ray.PORT, self._join_seconds)
                    for _, worker in workers:
                        await self._supervisor.launch(worker)
                    await self._supervisor.resume(head)
        except TowerError:
            for step, _ in parts:
                with suppress(TowerError):
                    await self._supervisor.drain(step.node, step.name)
            raise
        for (step, _), free in zip(parts, before, strict=True):
            await self._compare_memory(step, free)
        await self._compare_log(head_step)
        await self._warm(head_step, head)

    async def _make_ready(self, step: Step, spec: LaunchSpec) -> int | None:
        """Fetch what it needs, stop what it replaces, wait for memory; the free bytes before the start."""
        with self._phase(step, "fetch", spec.image or spec.served_model):
            await self._drivers[spec.node].pull(
                spec, lambda at: self._report(Event(spec.engine, spec.node, "fetch", progress=at))
            )
        await self._supervisor.drain(spec.node, spec.name)
        return await self._sufficient_memory(step, spec, self._needs.get(spec.engine, Need()))

    async def _warm(self, step: Step, spec: LaunchSpec) -> None:
        need = self._needs.get(spec.engine, Need())
        if need.warm_later:
            self._supervisor.warm_later(spec)
        elif need.warm_requests:
            with self._phase(step, "warm-up"):
                done = await warm_up(
                    spec,
                    need.warm_requests,
                    lambda what: self._report(Event(spec.engine, spec.node, "warm-up", what)),
                )
            for problem in done.problems:
                self._report(Event(spec.engine, spec.node, "warning", f"warm-up request failed: {problem}"))

    async def _sufficient_memory(self, step: Step, spec: LaunchSpec, need: Need) -> int | None:
        probe = self._probes.get((step.node, step.engine))
        if probe is None or not need.memory_bytes + need.reserve_bytes:
            return None
        with self._phase(step, "memory"):
            settled = await self._settle(probe)
        free = settled.available_bytes
        if free is None:
            return None
        if not settled.still:
            text = f"free memory still moves after {settled.seconds:.0f} s; something else is starting or stopping"
            self._report(Event(step.engine, step.node, "warning", text))
        if free < need.memory_bytes + need.reserve_bytes:
            takes = f"it takes {need.memory_bytes / _GIB:.1f} GiB and " if need.memory_bytes else ""
            raise EngineError(
                f"engine {spec.engine!r} was not started: {takes}"
                f"{need.reserve_bytes / _GIB:.1f} GiB stay reserved, but node {spec.node!r} has "
                f"{free / _GIB:.1f} GiB free. Stop what else runs there, or make the engine smaller: lmtower plan"
            )
        return free if need.memory_bytes else None

    async def _compare_memory(self, step: Step, before: int | None) -> None:
        """Tell what the engine really took, and warn when that is more than the plan says."""
        need = self._needs.get(step.engine, Need())
        if before is None:
            return
        after = await self._probes[step.node, step.engine]()
        if after is None:
            return
        taken = before - after
        text = f"took {taken / _GIB:.1f} GiB, planned {need.memory_bytes / _GIB:.1f} GiB"
        over = taken > need.memory_bytes * 1.05 + _GIB
        self._report(Event(step.engine, step.node, "warning" if over else "measured", text))

    async def _compare_log(self, step: Step) -> None:
        """Tell what the engine says of its weights and its cache, beside the plan."""
        planned = self._needs.get(step.engine, Need()).plan
        if planned is None:
            return
        log = await self._drivers[step.node].logs(step.name, _LOG_LINES)
        try:
            seen = read_log(log.rpartition("--- lmtower starts")[2])
        except PlanError:  # llama.cpp, or a version that says it in other words
            return
        figures = [row for row in rows(compare(planned, seen)) if row[0] in _FIGURES]
        if figures:
            told = ", ".join(f"{name} {observed} (planned {wanted})" for name, wanted, observed, _ in figures)
            self._report(Event(step.engine, step.node, "measured", f"by its own log: {told}"))

    @asynccontextmanager
    async def _telling(self, step: Step, driver: Driver) -> AsyncIterator[None]:
        """Tell from time to time how far the engine says it is: 120B load for a quarter of an hour."""

        async def tell() -> None:
            begun = time.monotonic()
            while True:
                await asyncio.sleep(self._tell_seconds)
                with suppress(TowerError):
                    words = stage(await driver.logs(step.name, 100))
                    elapsed = time.monotonic() - begun
                    self._report(Event(step.engine, step.node, "load", words, elapsed=elapsed))

        task = asyncio.create_task(tell())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @contextmanager
    def _phase(self, step: Step, phase: str, detail: str = "") -> Iterator[None]:
        self._report(Event(step.engine, step.node, phase, detail))
        begun = time.monotonic()
        yield
        self._report(Event(step.engine, step.node, phase, detail, time.monotonic() - begun))


async def _answers(spec: LaunchSpec) -> bool:
    """Asked thrice: an engine in the middle of a long prefill may be late once."""
    for _ in range(_KEEP_CHECKS):
        if await healthy(spec.url, spec.health_path or "", spec.api_key):
            return True
    return False


async def _listening(host: str, port: int, longest_seconds: float) -> None:
    """Wait until something listens there, or the time is up: who comes too early tries again by itself."""
    with suppress(TimeoutError):
        async with asyncio.timeout(longest_seconds):
            while not await listens(host, port):  # noqa: ASYNC110 - another machine: nothing to await
                await asyncio.sleep(0.5)


def _together(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps one by one; those of an engine that spans nodes in one group, unless none of it has to start."""
    spanning = {
        step.engine
        for step in steps
        if step.spec is not None and step.spec.role and step.action in ("start", "replace")
    }
    groups: dict[str, list[Step]] = {}
    for number, step in enumerate(steps):
        tied = step.engine in spanning and step.spec is not None
        groups.setdefault(step.engine if tied else f" {number}", []).append(step)
    return list(groups.values())


def _lanes(steps: Sequence[Step]) -> list[list[Step]]:
    """Steps by node. Engines that span nodes tie theirs together, because a head and its workers start in order."""
    spanning = {step.node for step in steps if step.spec is not None and step.spec.role}
    lanes: dict[str, list[Step]] = {}
    for step in steps:
        lanes.setdefault("" if step.node in spanning else step.node, []).append(step)
    return list(lanes.values())
