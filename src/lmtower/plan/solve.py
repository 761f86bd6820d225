"""The solver: a tower and facts of its nodes -> a Plan, or the reasons why it does not fit. Pure; no search that can hang.

Theory of operation. Every engine needs its weights, its overhead and a cache for ``sequences`` requests of its context.
Engines whose context is written are seated first with all they need, the others with a small context. If that fits,
the others grow in the order of the file, each to the largest context (up to the trained length) that leaves the
reserve. Start order is largest first, because an empty node gives the cleanest profile; the utilisation of each
engine is its own share of the memory, which passes vLLM's start check as long as the plan fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, floor

from lmtower.config.types import Tower
from lmtower.errors import PlanError
from lmtower.plan.hardware import facts as catalogue_facts
from lmtower.plan.model import ModelFiles
from lmtower.plan.place import Board, budget
from lmtower.plan.types import EnginePlan, NodeFacts, NodePlan, Plan
from lmtower.plan.wants import LOCAL, Want, node_names, runtime_of, want
from lmtower.plan.warn import engine_warnings, tower_warnings

_GIB = 1024**3
_FIRST_PORT = 8100
_SMALL_CONTEXT = 8192
_STEP = 256
"""Contexts that we choose are multiples of this."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A solved set: what each engine got, before it is written as a plan."""

    wants: tuple[Want, ...]
    contexts: Mapping[str, int]
    pools: Mapping[str, int]
    board: Board
    fits: bool
    reasons: tuple[str, ...]


def tower_facts(tower: Tower, probed: Mapping[str, NodeFacts] | None = None) -> dict[str, NodeFacts]:
    """Facts of every node: probed ones first, else the hardware catalogue. Raises PlanError when neither knows it."""
    found = dict(probed or {})
    for name, node in tower.nodes.items():
        if name in found:
            if node.reserve is not None:
                found[name] = replace(found[name], reserve_bytes=node.reserve)
            continue
        if node.hardware is None:
            raise PlanError(
                f"nodes.{name}.hardware: missing, so its memory is not known. Write hardware: dgx-spark, or a size such as 24 GiB",
                field=f"nodes.{name}.hardware",
            )
        found[name] = catalogue_facts(node.hardware, name=name, reserve_bytes=node.reserve)
    return found


def plan(
    tower: Tower,
    facts: Mapping[str, NodeFacts] | None = None,
    models: Mapping[str, ModelFiles] | None = None,
    corrections: Mapping[str, int] | None = None,
) -> Plan:
    """Plans a whole tower. ``models`` by engine name (missing: the bundled catalogue), ``corrections`` in bytes by engine.

    Raises PlanError when a model cannot be understood; a set that does not fit is a Plan with ``fits=False``.
    """
    from lmtower.plan.suggest import suggestions

    nodes = tower_facts(tower, facts)
    wants = tuple(_wants(tower, nodes, models or {}, corrections or {}))
    outcome = solve(wants, nodes)
    reasons = outcome.reasons if outcome.fits else (*outcome.reasons, *suggestions(outcome, nodes))
    engines = _engine_plans(outcome, tower, nodes)
    return Plan(
        engines=engines,
        nodes=tuple(_node_plan(name, node, outcome) for name, node in nodes.items()),
        fits=outcome.fits,
        reasons=reasons,
        warnings=tower_warnings(engines, nodes),
    )


def _wants(
    tower: Tower, nodes: Mapping[str, NodeFacts], models: Mapping[str, ModelFiles], corrections: Mapping[str, int]
) -> list[Want]:
    from lmtower.plan.catalogue import bundled

    found = []
    for name, engine in tower.engines.items():
        if runtime_of(engine) == "external":
            continue
        for node in node_names(name, engine, tower):
            if node not in nodes:
                known = "the memory of this machine is not known" if node == LOCAL else f"there is no node {node!r}"
                raise PlanError(
                    f"engines.{name}.node: {known}. Write a node with its hardware", field=f"engines.{name}.node"
                )
        files = models.get(name) or bundled(engine.model)
        if files is None:
            raise PlanError(
                f"engines.{name}.model: {engine.model!r} is neither bundled, nor a folder, nor in the Hugging Face cache. "
                "With network, lmtower plan reads its config.json from the hub",
                field=f"engines.{name}.model",
            )
        found.append(want(name, tower, files, nodes, corrections.get(name, 0)))
    return found


def solve(wants: tuple[Want, ...], nodes: Mapping[str, NodeFacts]) -> Outcome:
    """Seats all engines, then gives contexts. Never raises: what does not fit is said in ``reasons``."""
    board = Board(nodes)
    contexts = {want.name: _first_context(want) for want in wants}
    pools = {want.name: _pool(want, contexts[want.name]) for want in wants}
    board.seat([(want, want.estimate.fixed_bytes + pools[want.name]) for want in wants])
    reasons = [reason for want in wants for reason in _own_reasons(want, board, contexts, pools)]
    reasons += _node_reasons(wants, nodes, board, pools)
    if not reasons:
        for want in wants:
            if want.flexible:
                contexts[want.name] = _grown(want, board, contexts[want.name], pools[want.name])
                pools[want.name] = _pool(want, contexts[want.name])
                board.take(want.name, want.estimate.fixed_bytes + pools[want.name])
    return Outcome(wants, contexts, pools, board, not reasons, tuple(reasons))


def _first_context(want: Want) -> int:
    if want.flexible:
        return min(want.limit, _SMALL_CONTEXT)
    if want.pool_bytes is not None and want.context in ("max", None):
        cache = want.estimate.cache
        return cache.longest(int(cache.blocks(want.pool_bytes) / 1.1), want.limit) or min(want.limit, _SMALL_CONTEXT)
    return want.limit


def _pool(want: Want, context: int) -> int:
    if not want.estimate.has_cache:
        return 0
    return want.pool_bytes if want.pool_bytes is not None else want.estimate.pool_bytes(context, want.sequences)


def _grown(want: Want, board: Board, context: int, pool: int) -> int:
    """The largest context whose cache fits into what is free now."""
    room = pool + board.free_for(want.name)
    low, high = context // _STEP, want.limit // _STEP
    if want.estimate.pool_bytes(want.limit, want.sequences) <= room:
        return want.limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if want.estimate.pool_bytes(middle * _STEP, want.sequences) <= room else (low, middle - 1)
        )
    return max(context, low * _STEP)


def _own_reasons(want: Want, board: Board, contexts: Mapping[str, int], pools: Mapping[str, int]) -> list[str]:
    """What is wrong with one engine by itself."""
    reasons = []
    estimate, context, pool = want.estimate, contexts[want.name], pools[want.name]
    if board.lacks_gpus(want):
        reasons.append(
            f"engines.{want.name}.tensor_parallel: {want.options.tensor_parallel} GPUs wanted, {', '.join(want.nodes)} has fewer"
        )
    if not estimate.has_cache:
        return reasons
    needed = estimate.cache.bytes_per_request(context)
    if pool < needed:
        longest = estimate.cache.longest(estimate.cache.blocks(pool), context)
        reasons.append(
            f"engines.{want.name}.kv_cache_memory: one request of {context} tokens needs {needed / _GIB:.2f} GiB of KV cache, "
            f"the pool has {pool / _GIB:.2f}. engines.{want.name}.context: {longest} fits"
        )
    batch, block = estimate.max_num_batched_tokens, estimate.cache.block_size
    if estimate.mamba_cache_mode == "align" and estimate.rules.align_needs_batch and batch < block:
        reasons.append(
            f"engines.{want.name}.batch_tokens: {batch} is below the block of {block} tokens, which vLLM {estimate.rules.version} "
            f"refuses with aligned prefix caching. {block} works"
        )
    blocks = estimate.cache.blocks(pool)
    if estimate.mamba_cache_mode is not None and want.sequences > blocks:
        reasons.append(
            f"engines.{want.name}.sequences: {want.sequences} exceeds the {blocks} blocks of its state cache. {blocks} works"
        )
    return reasons


def _node_reasons(
    wants: tuple[Want, ...], nodes: Mapping[str, NodeFacts], board: Board, pools: Mapping[str, int]
) -> list[str]:
    reasons = []
    for name, node in nodes.items():
        short = -board.free_on(name)
        if short <= 0 or not any(name in want.nodes for want in wants):
            continue
        allowed = budget(node)
        reasons.append(
            f"node {name!r}: {(allowed + short) / _GIB:.1f} GiB needed, {allowed / _GIB:.1f} GiB may be used "
            f"({node.memory_total_bytes / _GIB:.1f} GiB in total, {node.reserve / _GIB:.1f} GiB reserve): {short / _GIB:.1f} GiB too much"
        )
    return reasons


def _engine_plans(outcome: Outcome, tower: Tower, nodes: Mapping[str, NodeFacts]) -> tuple[EnginePlan, ...]:
    wants = {want.name: want for want in outcome.wants}
    size = {name: wants[name].estimate.fixed_bytes + outcome.pools[name] for name in wants}
    order = {name: index + 1 for index, name in enumerate(sorted(wants, key=lambda name: (-size[name], name)))}
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
        prefix_block_tokens=(unit or estimate.cache.block_size)
        if estimate.has_cache and want.options.prefix_caching
        else 0,
        active_bytes=active,
        decode_tokens_per_second=node.bandwidth_bytes_per_second / active if active and estimate.has_cache else 0.0,
        uncertainty=estimate.weights.uncertainty,
        pooling=not estimate.has_cache,
        multimodal=estimate.shape is not None and estimate.shape.vision is not None,
        devices=seats[0].devices if max(1, node.gpus) > 1 else (),
    )
    return replace(made, warnings=engine_warnings(made, want, tower, nodes))


def _match_unit(want: Want) -> int | None:
    """Hybrids hit only at block boundaries; a finer unit that divides the block lets multi-turn prompts hit (≥ 0.27.1)."""
    estimate = want.estimate
    if estimate.mamba_cache_mode != "align" or not estimate.rules.has_match_unit:
        return None
    return next(unit for unit in (64, 32, 16) if estimate.cache.block_size % unit == 0)


def _external(name: str, tower: Tower) -> EnginePlan:
    engine = tower.engines[name]
    context = engine.context if isinstance(engine.context, int) else 0
    return EnginePlan(
        name=name, nodes=(), model=engine.model, runtime="external", version=engine.version, recipe=find_recipe(engine.model, engine.recipe),
        max_model_len=context, max_num_seqs=engine.sequences or engine.slots or 0, max_num_batched_tokens=0, kv_cache_dtype="auto",
        kv_cache_memory_bytes=None, gpu_memory_utilization=None, weights_bytes=0, kv_cache_bytes=0, overhead_bytes=0, port=None, start_order=0,
    )  # fmt: skip


def find_recipe(model: str, written: str | None) -> str:
    """Recipe of an external engine: as written, else by its served name."""
    from lmtower.recipes import find

    return written or find(model).name


def _node_plan(name: str, node: NodeFacts, outcome: Outcome) -> NodePlan:
    names = tuple(want.name for want in outcome.wants if name in want.nodes)
    free = outcome.board.free_on(name)
    return NodePlan(node, names, budget(node) - free, node.reserve, free)
