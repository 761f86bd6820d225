"""The arithmetic of one engine, line by line, so that a person can check it against the engine's log."""

from __future__ import annotations

from collections.abc import Iterator

from lmtower.plan.estimate import Estimate
from lmtower.plan.kv import KvLayout, page_bytes_per_token, state_page_bytes
from lmtower.plan.overhead import PARALLEL
from lmtower.plan.types import NodeFacts

_GIB = 1024**3
_MIB = 1024**2


def explain(estimate: Estimate, context: int, pool: int, facts: NodeFacts | None = None) -> tuple[str, ...]:
    """Lines of text: weights, cache geometry, requests, overhead, sum."""
    lines = [*_weights(estimate), *_cache(estimate, context, pool), *_overhead(estimate)]
    total = estimate.fixed_bytes + pool
    lines.append(
        f"sum: {_gib(estimate.weights.bytes)} + {_gib(pool)} + {_gib(estimate.overhead.total_bytes)} = {_gib(total)}"
    )
    if facts is not None:
        lines.append(
            f"node {facts.name!r}: {_gib(facts.memory_total_bytes)} in total, {_gib(facts.reserve)} reserve, "
            f"utilisation {total / facts.memory_total_bytes:.3f}"
        )
        if facts.bandwidth_bytes_per_second and estimate.has_cache:
            active = estimate.weights.active_bytes
            lines.append(
                f"decode bound: {facts.bandwidth_bytes_per_second / 1e9:.0f} GB/s / {active / 1e9:.2f} "
                "GB read for each token = "
                f"{facts.bandwidth_bytes_per_second / max(1, active):.1f} tokens/s for one stream"
            )
    return tuple(lines)


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"


def _weights(estimate: Estimate) -> Iterator[str]:
    weights = estimate.weights
    doubt = f", ±{weights.uncertainty:.0%}" if weights.uncertainty else ""
    yield f"weights: {_gib(weights.bytes)} ({weights.basis}{doubt}; {estimate.files.origin or estimate.files.name})"
    for part, size in sorted(weights.parts.items(), key=lambda item: -item[1]):
        if size >= _MIB:
            yield f"  {part}: {_gib(size)}"


def _cache(estimate: Estimate, context: int, pool: int) -> Iterator[str]:
    cache = estimate.cache
    if not estimate.has_cache:
        yield "KV cache: none, the model is an encoder"
        return
    if isinstance(cache, KvLayout):
        yield from _geometry(estimate, cache)
        blocks = cache.blocks(pool)
        needed = cache.blocks_per_request(context)
        yield f"pool: {_gib(pool)} / {cache.bytes_per_block:,} B = {blocks:,} blocks (vLLM's null block among them)"
        counts = " + ".join(f"{cache.group_blocks(group.spec, context)}" for group in cache.groups[:12])
        yield (
            f"one request of {context:,} tokens: {counts}{' + …' if len(cache.groups) > 12 else ''} = "
            f"{needed:,} blocks = {_gib(cache.bytes_per_request(context))}"
        )
        yield (
            f"concurrency: {blocks:,} / {needed:,} = {cache.concurrency(blocks, context):.2f} ×; log line: "
            f"{cache.tokens(blocks, context):,} tokens"
        )
        return
    yield (
        f"KV cache: one sequence of {context:,} tokens takes {_gib(cache.bytes_per_request(context))}; the "
        f"pool is {_gib(pool)}"
    )


def _geometry(estimate: Estimate, cache: KvLayout) -> Iterator[str]:
    shape, options = estimate.shape, cache.options
    assert shape is not None
    for attention in dict.fromkeys(
        layer.attention for layer in shape.layers if layer.attention is not None and layer.attention.cached
    ):
        what = f"sliding window {attention.window}" if attention.window else "full attention"
        token = page_bytes_per_token(attention, options)
        if attention.latent is not None:
            yield f"{what}, latent: {token} B a token and layer in {estimate.kv_cache_dtype}"
        else:
            heads = max(1, attention.kv_heads // options.tensor_parallel)
            yield (
                f"{what}: {heads} KV heads × ({attention.head_dim} + {attention.value_dim}) in "
                f"{estimate.kv_cache_dtype} = {token:,} B a token and layer"
            )
    if shape.state is not None:
        state = shape.state
        page = state_page_bytes(state, options)
        yield (
            f"state: {state.heads} × {state.head_dim} × {state.state_size} × {state.state_element_bytes} B and "
            f"{state.conv_kernel - 1 + options.speculative_tokens} rows of {state.conv_dim():,} × 2 B"
            f"{f' over {options.tensor_parallel} GPUs' if options.tensor_parallel > 1 else ''} = {page:,} B"
        )
        yield f"block: {cache.block_size:,} tokens, so that one page holds a state (mode {options.mamba_cache_mode})"
    groups = ", ".join(f"{group.layers} layers of {group.spec.kind}" for group in cache.groups[:12])
    page = cache.groups[0].spec.page_bytes
    layers = cache.bytes_per_block // page
    yield f"groups: {len(cache.groups)} ({groups}{', …' if len(cache.groups) > 12 else ''})"
    yield f"bytes a block: {layers} × {page:,} B = {cache.bytes_per_block:,} B"


def _overhead(estimate: Estimate) -> Iterator[str]:
    parts = estimate.overhead
    yield f"overhead: {_gib(parts.total_bytes)}"
    for name, size, note in (
        (
            "activation peak",
            parts.activation_bytes,
            f"{estimate.options.max_num_seqs} seqs, {estimate.max_num_batched_tokens} batch tokens",
        ),
        ("CUDA graphs", parts.graph_bytes, ""),
        ("sampler", parts.sampler_bytes, "6 × seqs × vocabulary"),
        ("encoder cache and tower", parts.encoder_bytes, ""),
        (
            "CUDA context and non-torch",
            parts.context_bytes,
            "measured on an H200"
            + (f"; {_gib(PARALLEL)} of it for NCCL (two H100)" if estimate.options.tensor_parallel > 1 else ""),
        ),
        ("Python on the CPU side", parts.host_bytes, "unified memory"),
        ("correction", parts.correction_bytes, "observed at an earlier start"),
        ("spare", parts.margin_bytes, "growth under traffic, uncertainty of the weights"),
    ):
        if size:
            yield f"  {name}: {size / _GIB:+.2f} GiB{f' ({note})' if note else ''}"
