"""Engines that this process runs itself: started one after the other, watched, restarted, stopped with it."""

from __future__ import annotations

from collections.abc import Sequence

from lmtower.cli.upstreams import is_external, ports, runtime_of
from lmtower.config.types import Node, Tower
from lmtower.engines import LaunchSpec, driver_of
from lmtower.nodes.supervisor import Supervisor
from lmtower.plan.types import EnginePlan
from lmtower.recipes import find

_CONTEXT = 4096
_SEQUENCES = 4


class Fleet:
    """The engines of one ``lmtower up``: what the admin API starts, stops and reads the logs of."""

    def __init__(self, specs: Sequence[LaunchSpec], supervisor: Supervisor) -> None:
        self.specs = tuple(specs)
        self._supervisor = supervisor

    async def start_all(self) -> None:
        """Start all, one engine at a time, each waited for. Raises EngineError."""
        for spec in self.specs:
            await self._supervisor.launch(spec)

    async def start(self, engine: str) -> None:
        """Start the copies of one engine. Raises EngineError."""
        for spec in self.specs:
            if spec.engine == engine:
                await self._supervisor.launch(spec)

    async def stop(self, engine: str) -> None:
        """Stop the copies of one engine until the next start."""
        await self._supervisor.stop(engine)

    async def restart(self, engine: str) -> None:
        """Stop and start the copies of one engine."""
        await self._supervisor.restart(engine)

    async def logs(self, engine: str, lines: int) -> str:
        """The last lines of one engine."""
        return await self._supervisor.logs(engine, lines)

    async def close(self) -> None:
        """Stop every child."""
        await self._supervisor.close()


def child_plans(tower: Tower) -> tuple[EnginePlan, ...]:
    """Engines that run as child processes, as the tower file writes them: no card, so nothing to compute."""
    found = []
    for order, (name, port) in enumerate(ports(tower).items()):
        engine = tower.engines[name]
        node = engine.node or next(iter(tower.nodes), "local")
        if is_external(engine) or driver_of(tower.nodes.get(node, Node())) != "process":
            continue
        context = engine.context if isinstance(engine.context, int) else _CONTEXT
        found.append(
            EnginePlan(
                name=name,
                nodes=(node,),
                model=engine.model,
                runtime=engine.runtime or runtime_of(engine.model),
                version=engine.version,
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
            )
        )
    return tuple(found)
