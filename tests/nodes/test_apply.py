"""Apply against the recording fake: order, one at a time, sufficient memory, roll-back of one engine only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lmtower.engines.shapes import WarmRequest
from lmtower.engines.spec import LaunchSpec
from lmtower.errors import EngineError, NodeAway
from lmtower.nodes.apply import Apply, Event, Need
from lmtower.nodes.diff import diff
from lmtower.nodes.drivers import Observed
from lmtower.nodes.drivers.process import ProcessDriver
from lmtower.nodes.memory import MemoryProbe, Settled
from lmtower.nodes.supervisor import Supervisor
from tests.engines.plans import row
from tests.fakes.driver import RecordingDriver

GIB = 1024**3


def spec_of(engine: str, node: str = "spark") -> LaunchSpec:
    """An engine without a health check: ready as soon as it runs."""
    return LaunchSpec(engine, node, "vllm", ("vllm",), health_path=None).sealed()


class Stage:
    """A supervisor over fakes, and what was reported."""

    def __init__(self, *nodes: str, **options: Any) -> None:
        self.drivers = {node: RecordingDriver(node) for node in nodes or ("spark",)}
        self.supervisor = Supervisor(self.drivers, watch_seconds=3600)
        self.events: list[Event] = []
        options = {"needs": {}, "probes": {}, **options}
        self.apply = Apply(
            self.drivers, self.supervisor, report=self.events.append, settle_memory=self._settle, **options
        )

    async def _settle(self, probe: MemoryProbe) -> Settled:
        return Settled(await probe(), 0.0, still=True)

    def started(self, node: str = "spark") -> list[str]:
        """Names in the order they were started."""
        return [name for call, name in self.drivers[node].calls if call == "start"]


def free(*values: int) -> MemoryProbe:
    """A node with this much free memory, one value per question."""
    left = list(values)

    async def probe() -> int | None:
        return left.pop(0) if len(left) > 1 else left[0]

    return probe


async def test_engines_start_in_the_order_of_the_plan() -> None:
    """The driver sees one start after the other."""
    stage = Stage()
    outcome = await stage.apply.run(diff([spec_of("big"), spec_of("small")], ()))
    assert stage.started() == ["lmtower-big", "lmtower-small"]
    assert outcome.started == ["big", "small"]
    await stage.supervisor.close()


async def test_kept_engines_are_not_touched() -> None:
    """Only what has to start is started; the rest is watched."""
    stage = Stage()
    await stage.drivers["spark"].start(spec_of("big"))
    stage.drivers["spark"].calls.clear()
    steps = diff([spec_of("big"), spec_of("small")], await stage.drivers["spark"].observe())
    await stage.apply.run(steps)
    assert ("stop", "lmtower-big") not in stage.drivers["spark"].calls
    assert [status.spec.engine for status in stage.supervisor.statuses()] == ["big", "small"]
    await stage.supervisor.close()


async def test_engine_that_an_interrupted_start_left_loading_is_waited_for() -> None:
    """It runs as it should but does not answer yet: the next engine starts only when it does, and it is warmed up."""
    answers = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        status = "200 OK" if answers.is_set() else "503 Loading"
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    loading = LaunchSpec("big", "spark", "vllm", ("vllm",), port=port).sealed()
    need = Need(warm_requests=(WarmRequest("short prompt", "/v1/completions", {}),))
    stage = Stage(needs={"big": need}, tell_seconds=0.01)
    await stage.drivers["spark"].start(loading)
    stage.drivers["spark"].output[loading.name] = "Starting to load model x\n"
    steps = diff([loading, spec_of("small")], await stage.drivers["spark"].observe())
    run = asyncio.create_task(stage.apply.run(steps))
    async with asyncio.timeout(20):
        while not any(event.elapsed is not None for event in stage.events):  # noqa: ASYNC110 - told by a list
            await asyncio.sleep(0.01)
        assert stage.started() == ["lmtower-big"]
        answers.set()
        await run
    assert stage.started() == ["lmtower-big", "lmtower-small"]
    phases = [(event.engine, event.phase) for event in stage.events if event.seconds is not None]
    assert phases.index(("big", "warm-up")) < phases.index(("small", "load"))
    assert any(event.detail == "reading weights" for event in stage.events)
    await stage.supervisor.close()
    server.close()


async def test_failed_engine_is_rolled_back_alone() -> None:
    """The others run, and the reason is told."""
    stage = Stage()
    stage.drivers["spark"].fail["big"] = EngineError("engine 'big' ran out of memory")
    outcome = await stage.apply.run(diff([spec_of("big"), spec_of("small")], ()))
    assert outcome.failed == {"big": "engine 'big' ran out of memory"}
    assert list(stage.drivers["spark"].running) == ["lmtower-small"]
    await stage.supervisor.close()


async def test_too_little_memory_is_refused_before_the_start() -> None:
    """Better not to start than to freeze the node; the numbers are told."""
    stage = Stage(needs={"big": Need(70 * GIB, 12 * GIB)}, probes={("spark", "big"): free(80 * GIB)})
    outcome = await stage.apply.run(diff([spec_of("big")], ()))
    assert "takes 70.0 GiB and 12.0 GiB stay reserved, but node 'spark' has 80.0 GiB free" in outcome.failed["big"]
    assert stage.started() == []
    await stage.supervisor.close()


async def test_reserve_alone_is_checked_where_nothing_is_planned() -> None:
    """A machine without a GPU: what the engine takes is not known, what must stay free is. The supervisor knows why."""
    stage = Stage(needs={"big": Need(reserve_bytes=12 * GIB)}, probes={("spark", "big"): free(11 * GIB)})
    outcome = await stage.apply.run(diff([spec_of("big"), spec_of("small")], ()))
    assert outcome.started == ["small"]
    assert outcome.failed["big"].startswith(
        "engine 'big' was not started: 12.0 GiB stay reserved, but node 'spark' has 11.0 GiB free. Stop what else"
    )
    states = {status.spec.engine: (status.state, status.detail) for status in stage.supervisor.statuses()}
    assert states == {"big": ("failed", outcome.failed["big"]), "small": ("ready", "")}
    await stage.supervisor.close()


@pytest.mark.parametrize(("after", "phase"), [(40 * GIB, "measured"), (20 * GIB, "warning")])
async def test_real_memory_is_compared_with_the_plan(after: int, phase: str) -> None:
    """What it really took is read after the start; much more than planned is a warning."""
    stage = Stage(needs={"big": Need(70 * GIB)}, probes={("spark", "big"): free(110 * GIB, after)})
    await stage.apply.run(diff([spec_of("big")], ()))
    taken = (110 * GIB - after) / GIB
    assert Event("big", "spark", phase, f"took {taken:.1f} GiB, planned 70.0 GiB") in stage.events
    await stage.supervisor.close()


def spanning() -> tuple[LaunchSpec, LaunchSpec]:
    """A head and a worker of one engine."""
    head = LaunchSpec("big", "one", "vllm", ("bash",), role="head", health_path=None)
    worker = LaunchSpec("big", "two", "vllm", ("ray",), role="worker", health_path=None)
    return head.sealed(), worker.sealed()


async def test_worker_joins_before_the_head_is_waited_for() -> None:
    """vLLM on the head answers only when the worker's GPU is there: waiting in between would never end."""
    order: list[str] = []
    stage = Stage("one", "two", join_seconds=0.01)
    head, worker = spanning()

    class Head(RecordingDriver):
        async def observe(self) -> tuple[Observed, ...]:
            order.append("head is asked")
            return await super().observe()

        async def start(self, spec: LaunchSpec) -> None:
            order.append("head starts")
            await super().start(spec)

    class Worker(RecordingDriver):
        async def start(self, spec: LaunchSpec) -> None:
            order.append("worker starts")
            await super().start(spec)

    stage.drivers.update(one=Head("one"), two=Worker("two"))
    outcome = await stage.apply.run(diff([head, worker], ()))
    assert order[:3] == ["head starts", "worker starts", "head is asked"]
    assert outcome.started == ["big"]
    await stage.supervisor.close()


async def test_engine_whose_node_goes_away_in_the_middle_is_started_when_it_is_back() -> None:
    """Docker restarts while ``up`` starts engines: not given up. What the engine itself is guilty of stays failed."""
    stage = Stage()
    stage.supervisor = stage.apply._supervisor = Supervisor(stage.drivers, watch_seconds=0.01)
    stage.drivers["spark"].fail["big"] = NodeAway("node 'spark': no Docker engine runs here")
    stage.drivers["spark"].fail["odd"] = EngineError("bad flag")
    outcome = await stage.apply.run(diff([spec_of("big"), spec_of("odd"), spec_of("small")], ()))
    assert (outcome.started, sorted(outcome.failed)) == (["small"], ["big", "odd"])
    del stage.drivers["spark"].fail["big"]
    async with asyncio.timeout(10):
        while "lmtower-big" not in stage.drivers["spark"].running:  # noqa: ASYNC110 - the watch tells nobody
            await asyncio.sleep(0.01)
    assert {each.spec.engine: each.state for each in stage.supervisor.statuses()}["odd"] == "failed"
    await stage.supervisor.close()


async def test_failed_worker_takes_its_head_along() -> None:
    """Half an engine serves nobody and holds memory; nothing of it stays."""
    stage = Stage("one", "two", join_seconds=0.01)
    stage.drivers["two"].fail["big"] = EngineError("no GPU there")
    outcome = await stage.apply.run(diff(list(spanning()), ()))
    assert outcome.failed == {"big": "no GPU there"}
    assert stage.drivers["one"].running == {}
    await stage.supervisor.close()


async def test_lost_worker_starts_the_whole_engine_again() -> None:
    """The head's cluster has lost a GPU: keeping it would keep a dead engine."""
    stage = Stage("one", "two", join_seconds=0.01)
    head, worker = spanning()
    await stage.drivers["one"].start(head)
    steps = diff([head, worker], await stage.drivers["one"].observe())
    assert [step.action for step in steps] == ["keep", "start"]
    await stage.apply.run(steps)
    assert stage.started("one") == ["lmtower-big", "lmtower-big"]
    assert stage.started("two") == ["lmtower-big-worker"]
    await stage.supervisor.close()


async def test_engines_own_log_is_compared_with_the_plan() -> None:
    """vLLM says how large its weights are and what fits into its cache; both stand beside the planned figures."""
    planned = row("big", "Qwen/Qwen3-8B", weights_bytes=15 * GIB, kv_cache_tokens=1000, max_concurrency=4.0)
    stage = Stage(needs={"big": Need(plan=planned)})

    class Logged(RecordingDriver):
        async def logs(self, name: str, lines: int = 200) -> str:
            return "Model loading took 15.27 GiB memory\nGPU KV cache size: 1,200 tokens\n"

    stage.drivers["spark"] = Logged("spark")
    await stage.apply.run(diff([spec_of("big")], ()))
    said = "by its own log: weights 15.27 GiB (planned 15.00 GiB), kv cache tokens 1,200 (planned 1,000)"
    assert Event("big", "spark", "measured", said) in stage.events
    await stage.supervisor.close()


async def test_nodes_work_side_by_side() -> None:
    """A slow node does not hold up another."""
    stage = Stage("one", "two")
    steps = diff([spec_of("a", "one"), spec_of("b", "two")], ())
    outcome = await stage.apply.run(steps)
    assert sorted(outcome.started) == ["a", "b"]
    await stage.supervisor.close()


async def test_head_starts_before_its_workers() -> None:
    """An engine that spans nodes is started in order, over all of them."""
    stage = Stage("one", "two")
    head = replace(spec_of("wide", "one"), role="head").sealed()
    worker = replace(spec_of("wide", "two"), role="worker").sealed()
    seen: list[str] = []
    for driver in stage.drivers.values():
        driver.calls = _Shared(seen, driver.node)  # type: ignore[assignment]
    await stage.apply.run(diff([head, worker], ()))
    assert [call for call in seen if call.startswith("start")] == [
        "start one lmtower-wide",
        "start two lmtower-wide-worker",
    ]
    await stage.supervisor.close()


class _Shared(list[tuple[str, str]]):
    """Calls of several drivers in one order."""

    def __init__(self, seen: list[str], node: str) -> None:
        super().__init__()
        self._seen, self._node = seen, node

    def append(self, item: tuple[str, str]) -> None:
        self._seen.append(f"{item[0]} {self._node} {item[1]}")


async def test_warm_up_is_sent_before_the_engine_counts_as_started(
    driver: ProcessDriver, fake_spec: Callable[..., LaunchSpec]
) -> None:
    """Each warm-up request reaches the engine; one that fails is told and stops nothing."""
    supervisor = Supervisor({"local": driver}, start_timeout_seconds=10)
    events: list[Event] = []
    warm = (WarmRequest("short prompt", "/v1/completions", {"prompt": "x"}),)
    apply = Apply(
        {"local": driver}, supervisor, needs={"one": Need(warm_requests=warm)}, probes={}, report=events.append
    )
    outcome = await apply.run(diff([fake_spec("one")], ()))
    assert outcome.started == ["one"]
    assert [event.detail for event in events if event.phase == "warm-up" and event.seconds is None] == [
        "",
        "short prompt",
    ]
    assert any(event.phase == "warning" and "short prompt: 501" in event.detail for event in events)
    await supervisor.close()


async def test_engine_that_compiles_nothing_serves_at_once() -> None:
    """Its prefixes are sent on the side: a laptop answers within seconds."""
    stage = Stage(needs={"small": Need(warm_later=True, warm_requests=(WarmRequest("prefix", "/x", {}),))})
    warmed: list[str] = []

    async def warm(spec: LaunchSpec) -> None:
        warmed.append(spec.engine)

    supervisor = Supervisor(stage.drivers, watch_seconds=3600, on_return=warm)
    stage.apply._supervisor = supervisor
    await stage.apply.run(diff([spec_of("small")], ()))
    assert not any(event.phase == "warm-up" for event in stage.events)
    await asyncio.sleep(0)
    assert warmed == ["small"]
    await supervisor.close()
    await stage.supervisor.close()


async def test_two_starts_on_one_node_never_overlap() -> None:
    """The lock of a node holds for the admin API and the watch as well."""
    stage = Stage()
    running = 0

    class Slow(RecordingDriver):
        async def start(self, spec: LaunchSpec) -> None:
            nonlocal running
            running += 1
            assert running == 1
            await asyncio.sleep(0)
            await super().start(spec)
            running -= 1

    supervisor = Supervisor({"spark": Slow("spark")}, watch_seconds=3600)
    await asyncio.gather(*(supervisor.launch(spec_of(name)) for name in "abc"))
    assert len(supervisor.statuses()) == 3
    await supervisor.close()
    await stage.supervisor.close()
