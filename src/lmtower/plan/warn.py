"""Warnings that save a night: settings that start and then disappoint, each with its reason and its evidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lmtower.config.types import Tower
from lmtower.plan.catalogue import ORIGIN as CATALOGUE
from lmtower.plan.estimate import Estimate
from lmtower.plan.types import EnginePlan, NodeFacts
from lmtower.plan.wants import Want

_GIB = 1024**3
_CHARACTERS_PER_TOKEN = 4


def engine_warnings(made: EnginePlan, want: Want, tower: Tower, nodes: Mapping[str, NodeFacts]) -> tuple[str, ...]:
    """Warnings of one engine in a tower."""
    node = nodes[want.nodes[0]]
    found = list(
        estimate_warnings(
            want.estimate, node, made.max_model_len, made.kv_cache_bytes, pinned=want.pool_bytes is not None
        )
    )
    found += _prompt_warnings(made, want, tower)
    if want.utilisation is not None:
        found += _utilisation_warnings(made, want.utilisation, node)
    return tuple(found)


def tower_warnings(engines: Sequence[EnginePlan], nodes: Mapping[str, NodeFacts]) -> tuple[str, ...]:
    """Warnings of the whole set."""
    found: list[str] = []
    for name, node in nodes.items():
        found += _boot_warnings(name, node, sum(each.total_bytes for each in engines if name in each.nodes))
        started = sorted((engine for engine in engines if name in engine.nodes), key=lambda engine: engine.start_order)
        if len(started) > 1:
            names = ", ".join(engine.name for engine in started)
            what = (
                "counts the other's memory as its own"
                if not node.unified
                else "sees memory that another is about to take"
            )
            found.append(
                f"node {name!r}: start one engine at a time, in this order: {names}. Two that start "
                f"together: each {what} "
                "while profiling, and KV caches come out wrong or the start is refused"
            )
    return tuple(found)


def _boot_warnings(name: str, node: NodeFacts, used: int) -> Iterator[str]:
    """The reserve against what such a machine really has free, where the node itself was not asked yet."""
    if node.boot_free_bytes is None or node.memory_available_bytes < node.memory_total_bytes:
        return
    least, most = node.boot_free_bytes
    if used and least - used < node.reserve <= node.memory_total_bytes - used:
        yield (
            f"node {name!r}: such a machine boots with {least / _GIB:.0f} to {most / _GIB:.0f} GiB free, so only "
            f"{max(0, least - used) / _GIB:.1f} to {max(0, most - used) / _GIB:.1f} GiB would stay available, and the "
            f"reserve is {node.reserve / _GIB:.1f}. lmtower up measures the node and keeps to what it really has"
        )


def estimate_warnings(
    estimate: Estimate, node: NodeFacts | None, context: int, pool: int, *, pinned: bool
) -> Iterator[str]:
    """Warnings that need no tower file."""
    yield from _weight_warnings(estimate, node)
    if context > estimate.trained_context:
        yield (
            f"context {context} is above the trained length of {estimate.trained_context} tokens: "
            "answers get worse there; "
            "vLLM wants VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 or RoPE scaling"
        )
    if not estimate.has_cache:
        return
    yield from _hybrid_warnings(estimate)
    needed = estimate.cache.bytes_per_request(context)
    if estimate.shape is not None and estimate.shape.vision is not None and needed > estimate.weights.bytes:
        yield (
            f"one request of {context} tokens needs {needed / _GIB:.1f} GiB of KV cache, more than the weights "
            f"({estimate.weights.bytes / _GIB:.1f} GiB): give a vision engine a shorter context"
        )
    if pinned and needed <= pool < 1.05 * needed:
        yield (
            f"the pool has only {pool / needed:.3f} × the memory of one full request: with aligned "
            "caching and speculative "
            f"decoding such pools hang. Plan 1.1 × ({1.1 * needed / _GIB:.2f} GiB)"
        )
    if estimate.options.speculative_tokens:
        yield _draft_warning(estimate)


def _weight_warnings(estimate: Estimate, node: NodeFacts | None) -> Iterator[str]:
    layout = estimate.layout
    if layout is None:
        return
    if layout.stub and estimate.files.origin != CATALOGUE:
        guess = (
            " The weights here are a guess, ±3 %: the checkpoint's own folder gives exact ones"
            if estimate.weights.uncertainty
            else ""
        )
        yield (
            "the quantisation file names an algorithm but no layers: a checkpoint whose file is really like this loads "
            f"unquantised without a word (the 120B: 224 GiB instead of 68).{guess}"
        )
    elif not layout.declared and not layout.stub:
        yield (
            f"quantisation method {layout.method!r} is not known here: weights are planned as 16 bit "
            "unless the checkpoint's sizes are known"
        )
    if estimate.weights.uncertainty >= 0.05:
        yield (
            "the architecture is not known here: weights come from the size of its tensors, "
            f"±{estimate.weights.uncertainty:.0%}, and the KV cache is what a plain decoder of these widths keeps"
        )
    formats = {
        layout.default.name,
        *(form.name for form in layout.listed.values()),
        *(form.name for _, form in layout.targets),
    }
    if "nvfp4" in formats and node is not None and node.hardware is not None and "fp4" not in node.supports:
        yield (
            f"NVFP4 weights on {node.hardware}, which has no FP4 units: vLLM falls back to Marlin (16-bit arithmetic, "
            "up to 0.3 % more memory, no FP4 speed). An FP8 or INT4 checkpoint suits it better"
        )


def _hybrid_warnings(estimate: Estimate) -> Iterator[str]:
    mode, block, version = estimate.mamba_cache_mode, estimate.cache.block_size, estimate.rules.version
    if mode is None:
        return
    if mode == "none":
        yield (
            "prefix caching is off: vLLM leaves it off on hybrids without a word, and every request pays "
            f"its whole prompt. On, the block is {block} tokens"
        )
    elif mode == "all":
        yield (
            "mamba_cache_mode all keeps a state for every block of every state layer: about a fifth of the concurrency "
            "(120B: 56 × 204,800 tokens become 11 ×). align costs two states a request"
        )
    if mode == "align" and estimate.max_num_batched_tokens < block:
        if estimate.rules.align_needs_batch:
            yield (
                f"max_num_batched_tokens {estimate.max_num_batched_tokens} is below the block of {block}: "
                f"vLLM {version} refuses to start. Write {block} or more"
            )
        elif not estimate.rules.has_match_unit:
            yield (
                f"max_num_batched_tokens {estimate.max_num_batched_tokens} is below the block of {block}: "
                "prefixes are cached only at block ends"
            )


def _draft_warning(estimate: Estimate) -> str:
    draft = estimate.weights.parts.get("draft", 0)
    weights = f"{draft / _GIB:.1f} GiB of weights and " if draft else ""
    spec = estimate.options.speculative_tokens
    return (
        f"speculative decoding with {spec} draft tokens costs {weights}{spec} more state or cache pages a request, "
        "a spike at start, and on hybrids the last block of every prefix"
    )


def _prompt_warnings(made: EnginePlan, want: Want, tower: Tower) -> Iterator[str]:
    """A hybrid's block against the system prompts of its personas: a shorter shared prefix never hits."""
    if made.mamba_cache_mode in (None, "none"):
        return
    for name, persona in tower.personas.items():
        if persona.engine != made.name:
            continue
        tokens = len(persona.system or "") // _CHARACTERS_PER_TOKEN
        if 0 < tokens < made.block_size:
            later = (
                f"Multi-turn chats still hit, because prefix_match_unit is {made.prefix_match_unit}"
                if made.prefix_match_unit
                else "vLLM 0.27.1 and later hit in multi-turn chats with --prefix-match-unit"
            )
            yield (
                f"persona {name!r}: its prompt (about {tokens} tokens) is shorter than the prefix "
                f"block of {made.block_size}, "
                f"so the prompt alone is never a cache hit. {later}"
            )


def _utilisation_warnings(made: EnginePlan, utilisation: float, node: NodeFacts) -> Iterator[str]:
    if made.start_order > 1:
        asked = utilisation * node.memory_total_bytes / _GIB
        yield (
            f"gpu-memory-utilization {utilisation}: {asked:.1f} GiB must still be free when this engine starts as "
            f"number {made.start_order}, or its start check refuses; without it the plan's own value is used"
        )
