"""The solver: wishes and facts of the nodes -> contexts and pools, or the reasons why they do not fit. Pure.

Theory of operation. Every engine needs its weights, its overhead and a cache for ``sequences`` requests of its context.
Engines whose context is written are seated first with all they need, the others with a small context. If that fits,
the others grow in the order of the file, each to the largest context, up to the trained length, that leaves the
reserve.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from lmtower.plan.place import Board, budget
from lmtower.plan.types import NodeFacts
from lmtower.plan.wants import Want

_GIB = 1024**3
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
                grown = longest_beside(want, board, pools[want.name], want.limit)
                contexts[want.name] = max(contexts[want.name], grown)
                pools[want.name] = _pool(want, contexts[want.name])
                board.take(want.name, want.estimate.fixed_bytes + pools[want.name])
        reasons = _admission_reasons(wants, nodes, board, pools)
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


def longest_beside(want: Want, board: Board, pool: int, limit: int) -> int:
    """The largest context, up to the limit, whose cache fits into what the engine has and what is free now; 0: none."""
    room = pool + board.free_for(want.name)
    if want.estimate.pool_bytes(limit, want.sequences) <= room:
        return limit
    low, high = 0, limit // _STEP
    while low < high:
        middle = (low + high + 1) // 2
        fits = want.estimate.pool_bytes(middle * _STEP, want.sequences) <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    return low * _STEP


def _own_reasons(want: Want, board: Board, contexts: Mapping[str, int], pools: Mapping[str, int]) -> list[str]:
    """What is wrong with one engine by itself."""
    reasons = []
    estimate, context, pool = want.estimate, contexts[want.name], pools[want.name]
    if board.lacks_gpus(want):
        reasons.append(
            f"engines.{want.name}.tensor_parallel: {want.options.tensor_parallel} GPUs wanted, "
            f"{', '.join(want.nodes)} has fewer"
        )
    if not estimate.has_cache:
        return reasons
    needed = estimate.cache.bytes_per_request(context)
    if pool < needed:
        longest = estimate.cache.longest(estimate.cache.blocks(pool), context)
        reasons.append(
            f"engines.{want.name}.kv_cache_memory: one request of {context} tokens needs "
            f"{needed / _GIB:.2f} GiB of KV cache, "
            f"the pool has {pool / _GIB:.2f}. engines.{want.name}.context: {longest} fits"
        )
    batch, block = estimate.max_num_batched_tokens, estimate.cache.block_size
    if estimate.mamba_cache_mode == "align" and estimate.rules.align_needs_batch and batch < block:
        reasons.append(
            f"engines.{want.name}.batch_tokens: {batch} is below the block of {block} tokens, which "
            f"vLLM {estimate.rules.version} "
            f"refuses with aligned prefix caching. {block} works"
        )
    blocks = estimate.cache.blocks(pool)
    if estimate.mamba_cache_mode is not None and want.sequences > blocks:
        reasons.append(
            f"engines.{want.name}.sequences: {want.sequences} exceeds the {blocks} blocks of its state "
            f"cache. {blocks} works"
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
            f"({_room(node)}, {node.reserve / _GIB:.1f} GiB reserve): {short / _GIB:.1f} GiB too much"
        )
    return reasons


def start_order(wants: Sequence[Want], pools: Mapping[str, int]) -> tuple[Want, ...]:
    """Largest first: an empty node gives the cleanest profile."""
    return tuple(sorted(wants, key=lambda want: (-want.estimate.fixed_bytes - pools[want.name], want.name)))


def _admission_reasons(
    wants: Sequence[Want], nodes: Mapping[str, NodeFacts], board: Board, pools: Mapping[str, int]
) -> list[str]:
    """vLLM's start check for utilisations that the tower file fixes: free memory >= u × total, pinned pool or not.

    H200: 0.85 ran, then 0.2 was refused (20.58 GiB free, 27.96 asked).
    """
    used: dict[tuple[str, int], int] = defaultdict(int)
    reasons = []
    for number, want in enumerate(start_order(wants, pools), 1):
        seats = [(seat.node, gpu) for seat in board.seats(want.name) for gpu in seat.devices]
        for place in seats:
            node = nodes[place[0]]
            free = min(node.memory_total_bytes, node.memory_available_bytes) - used[place]
            asked = ceil(node.memory_total_bytes * (want.utilisation or 0))
            used[place] += want.estimate.fixed_bytes + pools[want.name]
            if want.runtime == "vllm" and asked > free:
                works = max(0, free) * 1000 // node.memory_total_bytes / 1000
                reasons.append(
                    f"engines.{want.name}.args.gpu-memory-utilization: {want.utilisation} asks for "
                    f"{asked / _GIB:.1f} GiB, and {max(0, free) / _GIB:.1f} GiB are free on {place[0]!r} when it "
                    f"starts as number {number}: vLLM refuses that, even with a pinned KV cache. "
                    f"Remove it, or write {works}"
                )
                break
    return reasons


def _room(node: NodeFacts) -> str:
    """The memory of a node as its reason tells it; what other programs hold is said where it was measured."""
    total = f"{node.memory_total_bytes / _GIB:.1f} GiB in total"
    if node.memory_available_bytes >= node.memory_total_bytes:
        return total
    return f"{total}, {node.memory_available_bytes / _GIB:.1f} GiB free before any engine"
