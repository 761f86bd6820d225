"""The plan as text: a table of engines, a bar of each node, reasons and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lmtower.plan.types import EnginePlan, NodePlan, Plan

_GIB = 1024**3
WIDTH = 72
WEIGHTS, CACHE, OVERHEAD, RESERVE, FREE, EXCESS = "█", "▓", "▒", "╳", "·", "!"
COLUMNS = (
    "engine",
    "order",
    "context",
    "max",
    "seqs",
    "weights",
    "KV cache",
    "overhead",
    "sum GiB",
    "util",
    "full",
    "prefix",
    "tok/s",
)


def engine_row(engine: EnginePlan) -> tuple[object, ...]:
    """One engine's row under ``COLUMNS``; ``full``: requests of full length at once."""
    if engine.runtime == "external":
        return (
            engine.name,
            None,
            engine.max_model_len or None,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
            None,
        )
    return (
        engine.name,
        engine.start_order,
        engine.max_model_len,
        engine.max_context or None,
        engine.max_num_seqs,
        _gib(engine.weights_bytes),
        _gib(engine.kv_cache_bytes),
        _gib(engine.overhead_bytes),
        _gib(engine.total_bytes),
        f"{engine.gpu_memory_utilization:.3f}" if engine.gpu_memory_utilization is not None else None,
        f"{engine.max_concurrency:.2f}" if engine.max_concurrency else None,
        _prefix(engine),
        f"{engine.decode_tokens_per_second:.0f}" if engine.decode_tokens_per_second else None,
    )


def _prefix(engine: EnginePlan) -> str | None:
    """Tokens between two points where a shared prefix can hit: the block, and the finer unit of multi-turn chats."""
    if not engine.prefix_block_tokens:
        return None
    return f"{engine.block_size}/{engine.prefix_match_unit}" if engine.prefix_match_unit else str(engine.block_size)


def segments(node: NodePlan, engines: Sequence[EnginePlan]) -> Iterator[tuple[str, str, int]]:
    """(engine or "", kind, bytes) of one GPU of a node, from the left; what is too much comes last as ``excess``."""
    for engine in sorted(engines, key=lambda engine: engine.start_order):
        yield engine.name, "weights", engine.weights_bytes
        yield engine.name, "cache", engine.kv_cache_bytes
        yield engine.name, "overhead", engine.overhead_bytes
    if node.free_bytes >= 0:
        yield "", "free", node.free_bytes
    yield "", "reserve", max(0, node.facts.memory_total_bytes - node.used_bytes - max(0, node.free_bytes))


def on_node(node: NodePlan, plan: Plan) -> list[EnginePlan]:
    """Engines that run on a node."""
    return [plan.engine(name) for name in node.engines]


def bar(node: NodePlan, plan: Plan) -> str:
    """A stacked bar: engines by start order, each weights, cache, overhead; then free, then the reserve."""
    marks = {"weights": WEIGHTS, "cache": CACHE, "overhead": OVERHEAD, "free": FREE, "reserve": RESERVE}
    engines = on_node(node, plan)
    if node.facts.gpus > 1:
        engines = [engine for engine in engines if 0 in engine.devices.get(node.facts.name, (0,))]
    total = max(node.facts.memory_total_bytes, node.used_bytes)
    text, done = "", 0
    for _, kind, size in segments(node, engines):
        done += size
        upto = min(WIDTH, round(done / total * WIDTH))
        text += marks[kind] * max(0, upto - len(text))
    text = text.ljust(WIDTH, FREE)[:WIDTH]
    allowed = round(node.facts.memory_total_bytes / total * WIDTH)
    return text[:allowed] + EXCESS * (WIDTH - allowed)


def node_lines(node: NodePlan, plan: Plan) -> Iterator[str]:
    """Title, bar, and the names under it."""
    facts = node.facts
    kind = "unified memory" if facts.unified else "GPU memory"
    several = f"{facts.gpus} × " if facts.gpus > 1 else ""
    yield (
        f"{facts.name}: {facts.hardware or 'memory as measured'}, "
        f"{several}{_gib(facts.memory_total_bytes)} GiB of {kind}"
    )
    yield f"  [{bar(node, plan)}]"
    state = f"{_gib(node.free_bytes)} GiB free" if node.free_bytes >= 0 else f"{_gib(-node.free_bytes)} GiB too much"
    yield (
        f"  {', '.join(node.engines) or 'no engine'}: {_gib(node.used_bytes)} GiB; reserve "
        f"{_gib(node.reserve_bytes)} GiB; {state}"
    )


def legend() -> str:
    """What the bar's marks mean."""
    return (
        f"{WEIGHTS} weights  {CACHE} KV cache  {OVERHEAD} overhead  {FREE} free  {RESERVE} reserve  {EXCESS} too much"
    )


def notes(plan: Plan) -> Iterator[str]:
    """Reasons of a refusal, then warnings by engine."""
    for reason in plan.reasons:
        yield f"does not fit: {reason}"
    for engine in plan.engines:
        for warning in engine.warnings:
            yield f"warning: {engine.name}: {warning}"
    for warning in plan.warnings:
        yield f"warning: {warning}"


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f}"
