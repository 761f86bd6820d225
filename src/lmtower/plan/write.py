"""A solved set, written as plans: start order, utilisation, ports and everything the engines room needs.

Start order is largest first, because an empty node gives the cleanest profile. The utilisation of each engine is its
own share of the memory: it passes vLLM's start check as long as the plan fits, whatever started before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil, floor

from lmtower.config.types import Tower
from lmtower.plan.place import budget
from lmtower.plan.solve import Outcome, longest_beside, start_order
from lmtower.plan.types import EnginePlan, NodeFacts, NodePlan
from lmtower.plan.wants import Want, runtime_of
from lmtower.plan.warn import engine_warnings
from lmtower.recipes import find

_FIRST_PORT = 8100


def engine_plans(outcome: Outcome, tower: Tower, nodes: Mapping[str, NodeFacts]) -> tuple[EnginePlan, ...]:
    """Plans of all engines, in the order of the file; external ones have no bytes and no port."""
    wants = {want.name: want for want in outcome.wants}
    size = {name: wants[name].estimate.fixed_bytes + outcome.pools[name] for name in wants}
    order = {want.name: number for number, want in enumerate(start_order(outcome.wants, outcome.pools), 1)}
    ports = _ports(tower)
    before: dict[tuple[str, int], int] = {}
    utilisations: dict[str, float | None] = {}
    for name in sorted(wants, key=lambda name: order[name]):
        utilisations[name] = _utilisation(wants[name], size[name], outcome, nodes, before)
    return tuple(
        _engine_plan(wants[name], outcome, tower, nodes, order[name], ports[name], utilisations[name])
        if name in wants
        else _external(name, tower)
        for name in tower.engines
    )


def _ports(tower: Tower) -> dict[str, int]:
    """Written ports as they are; the others count up from 8100 in the order of the file, and skip the written ones."""
    taken = {engine.port for engine in tower.engines.values() if engine.port}
    ports, following = {}, _FIRST_PORT
    for name, engine in tower.engines.items():
        if engine.port:
            ports[name] = engine.port
        elif runtime_of(engine) != "external":
            while following in taken:
                following += 1
            ports[name] = following
            following += 1
    return ports


def _utilisation(
    want: Want, needed: int, outcome: Outcome, nodes: Mapping[str, NodeFacts], before: dict[tuple[str, int], int]
) -> float | None:
    """The engine's own share of the memory, rounded up, and never more than is free when its turn comes."""
    shares = []
    for seat in outcome.board.seats(want.name):
        node = nodes[seat.node]
        total = node.memory_total_bytes
        for gpu in seat.devices:
            used = before.get((seat.node, gpu), 0)
            free = max(0, min(total, node.memory_available_bytes) - used)
            shares.append(min(ceil(needed / total * 1000) / 1000, floor(free / total * 1000) / 1000))
            before[(seat.node, gpu)] = used + needed
    if want.runtime != "vllm":
        return None
    return want.utilisation if want.utilisation is not None else max(0.001, min(shares))


def _engine_plan(
    want: Want,
    outcome: Outcome,
    tower: Tower,
    nodes: Mapping[str, NodeFacts],
    order: int,
    port: int,
    utilisation: float | None,
) -> EnginePlan:
    estimate, context, pool = want.estimate, outcome.contexts[want.name], outcome.pools[want.name]
    blocks = estimate.cache.blocks(pool)
    node = nodes[want.nodes[0]]
    active = estimate.weights.active_bytes
    unit = _match_unit(want)
    seats = outcome.board.seats(want.name)
    made = EnginePlan(
        name=want.name,
        nodes=want.nodes,
        model=want.engine.model,
        runtime=want.runtime,
        version=want.version,
        recipe=want.recipe.name,
        max_model_len=context,
        max_num_seqs=want.sequences,
        max_num_batched_tokens=estimate.max_num_batched_tokens,
        kv_cache_dtype=estimate.kv_cache_dtype,
        kv_cache_memory_bytes=pool if estimate.has_cache and want.runtime == "vllm" else None,
        gpu_memory_utilization=utilisation,
        weights_bytes=estimate.weights.bytes,
        kv_cache_bytes=pool,
        overhead_bytes=estimate.overhead.total_bytes,
        port=port,
        start_order=order,
        block_size=estimate.cache.block_size if estimate.has_cache else 0,
        mamba_cache_mode=estimate.mamba_cache_mode,
        prefix_match_unit=unit,
        prefix_caching=want.options.prefix_caching,
        tensor_parallel=want.options.tensor_parallel,
        speculative_tokens=want.options.speculative_tokens,
        quantization=want.options.quantization,
        overhead=estimate.overhead,
        num_blocks=blocks if want.runtime == "vllm" else 0,
        kv_cache_tokens=estimate.cache.tokens(blocks, context) if estimate.has_cache else 0,
        max_concurrency=estimate.cache.concurrency(blocks, context) if estimate.has_cache else 0.0,
        kv_bytes_per_request=estimate.cache.bytes_per_request(context) if estimate.has_cache else 0,
        trained_context=estimate.trained_context,
        max_context=_max_context(want, outcome),
        prefix_block_tokens=(unit or estimate.cache.block_size)
        if estimate.has_cache and want.options.prefix_caching
        else 0,
        active_bytes=active,
        decode_tokens_per_second=node.bandwidth_bytes_per_second / active if active and estimate.has_cache else 0.0,
        uncertainty=estimate.weights.uncertainty,
        pooling=not estimate.has_cache,
        multimodal=estimate.shape is not None and estimate.shape.vision is not None,
        devices={seat.node: seat.devices for seat in seats if nodes[seat.node].gpus > 1},
    )
    return replace(made, warnings=engine_warnings(made, want, tower, nodes))


def _max_context(want: Want, outcome: Outcome) -> int:
    """What ``context: max`` would give, with everything else as it is."""
    if not want.estimate.has_cache:
        return want.estimate.trained_context
    trained, pool = want.estimate.trained_context, outcome.pools[want.name]
    if want.pool_bytes is not None:
        return want.estimate.cache.longest(want.estimate.cache.blocks(pool), trained)
    return longest_beside(want, outcome.board, pool, trained)


def _match_unit(want: Want) -> int | None:
    """Hybrids hit only at block boundaries; a finer unit that divides the block helps multi-turn prompts (≥ 0.27.1)."""
    estimate = want.estimate
    if estimate.mamba_cache_mode != "align" or not estimate.rules.has_match_unit:
        return None
    return next(unit for unit in (64, 32, 16) if estimate.cache.block_size % unit == 0)


def _external(name: str, tower: Tower) -> EnginePlan:
    engine = tower.engines[name]
    context = engine.context if isinstance(engine.context, int) else 0
    return EnginePlan(
        name=name,
        nodes=(),
        model=engine.model,
        runtime="external",
        version=engine.version,
        recipe=engine.recipe or find(engine.model).name,
        max_model_len=context,
        max_num_seqs=engine.sequences or engine.slots or 0,
        max_num_batched_tokens=0,
        kv_cache_dtype="auto",
        kv_cache_memory_bytes=None,
        gpu_memory_utilization=None,
        weights_bytes=0,
        kv_cache_bytes=0,
        overhead_bytes=0,
        port=None,
        start_order=0,
    )


def node_plan(name: str, node: NodeFacts, outcome: Outcome) -> NodePlan:
    """What a node holds, and what stays beside its reserve."""
    names = tuple(want.name for want in outcome.wants if name in want.nodes)
    free = outcome.board.free_on(name)
    return NodePlan(node, names, budget(node) - free, node.reserve, free)
