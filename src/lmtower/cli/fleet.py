"""The engines of one ``lmtower up``: brought to what the file says, watched, and steered through the admin API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmtower.cli.upstreams import is_external, ports, runtime_of
from lmtower.config.types import Node, Tower
from lmtower.errors import EngineError
from lmtower.plan.types import EnginePlan
from lmtower.plan.versions import of_image
from lmtower.recipes import find

if TYPE_CHECKING:
    from lmtower.cli.desired import Desired
    from lmtower.engines import LaunchSpec
    from lmtower.engines.shapes import WarmRequest
    from lmtower.nodes.apply import Event, Outcome
    from lmtower.nodes.diff import Step
    from lmtower.nodes.drivers import Driver
    from lmtower.nodes.supervisor import Supervisor
    from lmtower.nodes.warmup import WarmUp

_CONTEXT = 4096
_SEQUENCES = 4
_WORST = ("failed", "starting", "draining", "stopped", "ready")


class Fleet:
    """Owns the supervisor. ``read`` gives what the tower file wants now; it is asked again before each step."""

    def __init__(
        self,
        read: Callable[[], Desired],
        drivers: Mapping[str, Driver],
        supervisor: Supervisor,
        report: Callable[[Event], None],
    ) -> None:
        self._read = read
        self._drivers = drivers
        self._supervisor = supervisor
        self._report = report
        self._applying = asyncio.Lock()
        self._primed: set[tuple[str, ...]] = set()
        self._priming: set[asyncio.Future[WarmUp]] = set()

    async def diff(self, engine: str | None = None) -> tuple[tuple[Step, ...], dict[str, str]]:
        """Steps to what the file wants, and nodes that cannot be asked with the reason."""
        from lmtower.cli.desired import observe
        from lmtower.nodes.diff import diff

        found, unreachable = await observe(self._drivers)
        specs = [spec for spec in self._read().specs if spec.node not in unreachable]
        steps = diff(specs, [each for each in found if each.node in self._drivers])
        return tuple(step for step in steps if engine in (None, step.engine)), unreachable

    async def apply(self, steps: tuple[Step, ...]) -> Outcome:
        """Carry steps out and watch what runs then; engines on nodes that are away are watched for their return."""
        from lmtower.cli.desired import needs_of, probes_of
        from lmtower.nodes.apply import Apply

        wanted = self._read()
        async with self._applying:
            apply = Apply(
                self._drivers,
                self._supervisor,
                needs=needs_of(wanted),
                probes=probes_of(wanted),
                report=self._report,
            )
            outcome = await apply.run(steps)
            self._primed.update(each.key for each in _prefixes(wanted) if each.spec.engine in outcome.started)
            return outcome

    def prime(self, wanted: Desired) -> None:
        """Send each prefix that a running engine has not had from us, on the side: after an edit of a prompt its first
        user hits a warm cache, too.
        """
        from lmtower.nodes.warmup import warm_up

        ready = {
            (status.spec.node, status.spec.name) for status in self._supervisor.statuses() if status.state == "ready"
        }
        for prefix in _prefixes(wanted):
            spec = prefix.spec
            if prefix.key not in self._primed and (spec.node, spec.name) in ready:
                self._primed.add(prefix.key)
                task = asyncio.ensure_future(warm_up(spec, (prefix.request,)))
                self._priming.add(task)
                task.add_done_callback(self._priming.discard)

    async def await_return(self, unreachable: Mapping[str, str]) -> None:
        """Watch engines of nodes that could not be asked; they are picked up when the node is back."""
        for spec in self._read().specs:
            if spec.node in unreachable:
                self._supervisor.adopt(spec, "starting")

    async def warm(self, spec: LaunchSpec) -> None:
        """Send the warm-up requests of an engine that came back by itself."""
        from lmtower.cli.desired import needs_of
        from lmtower.nodes.warmup import warm_up

        need = needs_of(self._read()).get(spec.engine)
        if need is not None and spec.role != "worker":
            await warm_up(spec, need.warm_requests)

    async def start(self, engine: str) -> None:
        """Start the copies of one engine that do not run as the file says. Raises EngineError."""
        steps, _ = await self.diff(engine)
        await self._carry_out(tuple(step for step in steps if step.spec is not None), engine)

    async def stop(self, engine: str) -> None:
        """Stop the copies of one engine until the next start."""
        await self._supervisor.stop(engine)

    async def restart(self, engine: str) -> None:
        """Stop and start the copies of one engine, as the file says now."""
        from lmtower.nodes.diff import Step

        specs = [spec for spec in self._read().specs if spec.engine == engine]
        steps = (Step("replace", engine, spec.node, spec.name, "restart", spec) for spec in specs)
        await self._carry_out(tuple(steps), engine)

    async def logs(self, engine: str, lines: int) -> str:
        """The last lines of one engine."""
        return await self._supervisor.logs(engine, lines)

    def states(self) -> dict[str, tuple[str, str]]:
        """State and reason of every engine; of several copies the one that is worst off."""
        found: dict[str, tuple[str, str]] = {}
        for status in self._supervisor.statuses():
            told = found.get(status.spec.engine)
            if told is None or _WORST.index(status.state) < _WORST.index(told[0]):
                found[status.spec.engine] = (status.state, status.detail)
        return found

    def absent(self, url: str) -> bool:
        """Whether the engine of this URL failed or was stopped: then somebody else answers there, if anybody does."""
        return any(
            status.spec.url == url and status.state in ("failed", "stopped") for status in self._supervisor.statuses()
        )

    async def close(self) -> None:
        """Stop every child; containers stay."""
        for task in self._priming:
            task.cancel()
        await self._supervisor.close()

    async def _carry_out(self, steps: tuple[Step, ...], engine: str) -> None:
        if not steps:
            raise EngineError(f"there is no engine {engine!r} to start in the tower file")
        outcome = await self.apply(steps)
        if outcome.failed:
            raise EngineError("\n".join(outcome.failed.values()))


@dataclass(frozen=True, slots=True)
class _Prefix:
    """One persona's prefix for one copy of its engine. ``key`` changes when either does."""

    spec: LaunchSpec
    request: WarmRequest

    @property
    def key(self) -> tuple[str, ...]:
        body = json.dumps(self.request.body, sort_keys=True)
        return self.spec.node, self.spec.name, self.spec.spec_hash, body


def _prefixes(wanted: Desired) -> Iterator[_Prefix]:
    from lmtower.cli.prefixes import prefix_requests

    for spec in wanted.specs:
        if spec.role != "worker":
            for request in prefix_requests(wanted.tower, wanted.rows[spec.engine]):
                yield _Prefix(spec, request)


def child_plans(tower: Tower) -> tuple[EnginePlan, ...]:
    """Engines on machines without a GPU, as the tower file writes them: there is no card, so nothing to compute."""
    found = []
    for order, (name, port) in enumerate(ports(tower).items()):
        engine = tower.engines[name]
        nodes = engine.nodes or ((engine.node,) if engine.node else (next(iter(tower.nodes), "local"),))
        if is_external(engine) or any(not _bare(tower.nodes.get(node, Node())) for node in nodes):
            continue
        context = engine.context if isinstance(engine.context, int) else _CONTEXT
        found.append(
            EnginePlan(
                name=name,
                nodes=nodes,
                model=engine.model,
                runtime=engine.runtime or runtime_of(engine.model),
                version=engine.version or of_image(engine.image),
                recipe=engine.recipe or find(engine.model).name,
                max_model_len=context,
                max_num_seqs=engine.sequences or _SEQUENCES,
                max_num_batched_tokens=engine.batch_tokens or 0,
                kv_cache_dtype=engine.kv_cache_dtype or "auto",
                kv_cache_memory_bytes=engine.kv_cache_memory,
                gpu_memory_utilization=None,
                weights_bytes=0,
                kv_cache_bytes=0,
                overhead_bytes=0,
                port=port,
                start_order=order,
                prefix_caching=engine.prefix_caching,
            )
        )
    return tuple(found)


def _bare(node: Node) -> bool:
    """True for a machine without a GPU: ``cpu``, or this machine when nothing else is said."""
    return node.hardware == "cpu" or (node.hardware is None and node.address == "local")
