"""``lmtower fit``: one model under given flags, on some hardware, in a pool of known size, or in nothing but theory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

from lmtower.errors import PlanError
from lmtower.plan.estimate import Estimate, Options, estimate
from lmtower.plan.model import ModelFiles
from lmtower.plan.place import budget
from lmtower.plan.types import NodeFacts
from lmtower.plan.warn import estimate_warnings

_GIB = 1024**3
_NON_TORCH = int(0.225 * _GIB)
_PROFILED_HOST = int(4.5 * _GIB)
"""GB10: 0.2 (gemma-4-26B), 2.5 and 3.0 (Qwen2.5-3B), 4.3 and 4.5 GiB (Qwen3.6) less cache than a card would have."""
_SERVER_SEQUENCES = 256
"""vLLM's own default of ``--max-num-seqs``."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. ``context`` None: as trained; ``max``: the longest that fits. Bytes are per GPU."""

    files: ModelFiles
    options: Options
    facts: NodeFacts | None = None
    context: int | Literal["max"] | None = None
    pool_bytes: int | None = None
    utilisation: float | None = None
    sequences_given: bool = True


@dataclass(frozen=True, slots=True)
class Fit:
    """The answer. ``kv_cache_tokens`` is "GPU KV cache size" as the log of this version means it."""

    estimate: Estimate
    context: int
    pool_bytes: int
    num_blocks: int
    budget_bytes: int | None
    fits: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def total_bytes(self) -> int:
        """What one GPU holds of it."""
        return self.estimate.fixed_bytes + self.pool_bytes

    @property
    def needed_bytes(self) -> int:
        """The least that a start needs: weights, overhead and one request."""
        return self.estimate.fixed_bytes + self.bytes_per_request

    @property
    def bytes_per_request(self) -> int:
        """Cache of one request of ``context`` tokens."""
        return self.estimate.cache.bytes_per_request(self.context) if self.estimate.has_cache else 0

    @property
    def max_concurrency(self) -> float:
        """Requests of full length that fit at once."""
        return self.estimate.cache.concurrency(self.num_blocks, self.context) if self.estimate.has_cache else 0.0

    @property
    def kv_cache_tokens(self) -> int:
        """Tokens, as this version logs them."""
        return self.estimate.cache.tokens(self.num_blocks, self.context) if self.estimate.has_cache else 0

    @property
    def longest_context(self) -> int:
        """The longest request that the pool holds, up to the trained length."""
        return self.estimate.cache.longest(self.num_blocks, max(self.estimate.trained_context, self.context))


def fit(question: Question) -> Fit:
    """Answers. Raises PlanError when the model or a flag cannot be understood; "does not fit" is an answer."""
    if question.utilisation is not None and not 0 < question.utilisation <= 1:
        raise PlanError(
            f"gpu_memory_utilization: {question.utilisation!r} is not between 0 and 1", field="gpu_memory_utilization"
        )
    made = estimate(question.files, question.options, question.facts)
    room = budget(question.facts) if question.facts is not None else None
    context, pool = _context_and_pool(question, made, room)
    pool = max(0, pool)
    blocks = made.cache.blocks(pool) if made.has_cache else 0
    if (
        made.mamba_cache_mode is not None
        and not question.sequences_given
        and 0 < blocks < question.options.max_num_seqs
    ):
        return fit(replace(question, options=replace(question.options, max_num_seqs=blocks), sequences_given=True))
    reasons = tuple(_reasons(question, made, context, pool, blocks, room))
    refused = any(not reason.startswith("note: ") for reason in reasons)
    warnings = tuple(estimate_warnings(made, question.facts, context, pool, pinned=question.pool_bytes is not None))
    return Fit(made, context, pool, blocks, room, not refused, reasons, warnings)


def _context_and_pool(question: Question, made: Estimate, room: int | None) -> tuple[int, int]:
    trained = made.trained_context
    wanted = question.context
    pool = question.pool_bytes
    if not made.has_cache:
        return (trained if wanted in ("max", None) else int(wanted)), 0
    if pool is None and room is not None:
        pool = (
            room - made.fixed_bytes if question.utilisation is None else _profiled(question, made, question.utilisation)
        )
    if pool is None:
        context = trained if wanted in ("max", None) else int(wanted)
        return context, made.cache.bytes_per_request(context)
    if wanted == "max":
        return max(1, made.cache.longest(made.cache.blocks(pool), trained)), pool
    return (trained if wanted is None else int(wanted)), pool


def _profiled(question: Question, made: Estimate, utilisation: float) -> int:
    """ "Available KV cache memory" after profiling: ``u × total − weights − activation − 0.225 GiB − graph estimate``.

    The estimate is subtracted for mixtures and hybrids only (0.21 on); the CUDA context never is. On unified memory
    vLLM reads MemAvailable, so what Python and page cache take meanwhile is missing from the pool too.
    """
    assert question.facts is not None
    parts, shape = made.overhead, made.shape
    graphs = (
        parts.graph_bytes
        if shape is not None and (shape.is_moe or shape.is_hybrid) and made.rules.estimates_graphs
        else 0
    )
    asked = ceil(question.facts.memory_total_bytes * utilisation)
    host = _PROFILED_HOST if question.facts.unified else 0
    return asked - made.weights.bytes - parts.activation_bytes - _NON_TORCH - graphs - host


def _reasons(
    question: Question, made: Estimate, context: int, pool: int, blocks: int, room: int | None
) -> Iterator[str]:
    """Why it does not fit; lines that start with ``note:`` only explain."""
    facts = question.facts
    if facts is not None and made.files.gguf is None and "vllm" not in facts.runtimes:
        yield f"hardware: vLLM does not run on {facts.hardware}. Take a GGUF model with llama.cpp"
    if facts is not None and question.options.tensor_parallel > facts.gpus:
        yield (
            f"tensor_parallel_size: {question.options.tensor_parallel} GPUs wanted, {facts.gpus} there. "
            f"Write --hardware '{question.options.tensor_parallel}x {facts.hardware}'"
        )
    if made.has_cache:
        yield from _pool_reasons(question, made, context, pool, blocks)
    if room is not None and facts is not None:
        needed = made.fixed_bytes + (
            pool if question.pool_bytes is not None else made.cache.bytes_per_request(context) if made.has_cache else 0
        )
        if needed > room:
            yield (
                f"hardware: {needed / _GIB:.2f} GiB needed (weights {made.weights.bytes / _GIB:.2f}, overhead "
                f"{made.overhead.total_bytes / _GIB:.2f}, KV cache "
                f"{(needed - made.fixed_bytes) / _GIB:.2f}), {room / _GIB:.2f} GiB may be used of "
                f"{facts.memory_total_bytes / _GIB:.2f} (reserve {facts.reserve / _GIB:.2f}): "
                f"{(needed - room) / _GIB:.2f} GiB too much"
            )
    elif question.pool_bytes is None and made.has_cache:
        yield (
            "note: no hardware and no KV pool were given, so there is nothing that it could exceed; the "
            "pool shown holds one request"
        )


def _pool_reasons(question: Question, made: Estimate, context: int, pool: int, blocks: int) -> Iterator[str]:
    cache = made.cache
    if cache.blocks_per_request(context) > blocks:
        longest = cache.longest(blocks, context)
        advice = f"max_model_len: {longest} fits" if longest > 0 else "not even one token fits"
        needed = cache.bytes_per_request(context)
        yield (
            f"kv_cache: one request of {context} tokens needs {needed / _GIB:.2f} GiB, the pool has "
            f"{pool / _GIB:.2f} GiB. {advice}"
        )
    gated = made.mamba_cache_mode is not None and not question.options.eager
    if gated and question.sequences_given and 0 < blocks < question.options.max_num_seqs:
        yield (
            f"max_num_seqs: {question.options.max_num_seqs} exceeds available Mamba cache blocks "
            f"({blocks}). {blocks} works"
        )
    batch = made.max_num_batched_tokens
    if made.mamba_cache_mode == "align" and made.rules.align_needs_batch and batch < cache.block_size:
        given = question.options.max_num_batched_tokens is not None
        prefix = "" if given else "note: "
        yield (
            f"{prefix}max_num_batched_tokens: {batch} is below the block of {cache.block_size} tokens, "
            f"which vLLM {made.rules.version} refuses. {cache.block_size} works"
        )


def as_json(answer: Fit, question: Question) -> dict[str, Any]:
    """One object for ``--json``. Bytes are per GPU, as vLLM logs them per rank."""
    made = answer.estimate
    parts = made.overhead
    facts = question.facts
    active = made.weights.active_bytes
    return {
        "model": made.files.name,
        "origin": made.files.origin,
        "architecture": made.shape.architecture
        if made.shape
        else made.files.gguf.architecture
        if made.files.gguf
        else "",
        "family": made.shape.family if made.shape else "GGUF",
        "runtime": "vllm" if made.shape else "llamacpp",
        "vllm_version": made.rules.version if made.shape else None,
        "hardware": facts.hardware if facts else None,
        "tensor_parallel_size": question.options.tensor_parallel,
        "max_model_len": answer.context,
        "max_num_seqs": made.options.max_num_seqs,
        "max_num_batched_tokens": made.max_num_batched_tokens,
        "kv_cache_dtype": made.kv_cache_dtype,
        "mamba_cache_mode": made.mamba_cache_mode,
        "prefix_caching": made.options.prefix_caching,
        "num_speculative_tokens": made.options.speculative_tokens,
        "weights_bytes": made.weights.bytes,
        "weights_parts": dict(made.weights.parts),
        "weights_basis": made.weights.basis,
        "weights_uncertainty": made.weights.uncertainty,
        "kv_cache_bytes": answer.pool_bytes,
        "kv_bytes_per_request": answer.bytes_per_request,
        "block_size": made.cache.block_size if made.has_cache else 0,
        "bytes_per_block": made.cache.bytes_per_block if made.has_cache else 0,
        "blocks_per_request": made.cache.blocks_per_request(answer.context) if made.has_cache else 0,
        "num_blocks": answer.num_blocks,
        "kv_cache_tokens": answer.kv_cache_tokens,
        "max_concurrency": answer.max_concurrency,
        "longest_context": answer.longest_context,
        "trained_context": made.trained_context,
        "overhead_bytes": parts.total_bytes,
        "activation_bytes": parts.activation_bytes,
        "graph_bytes": parts.graph_bytes,
        "sampler_bytes": parts.sampler_bytes,
        "encoder_bytes": parts.encoder_bytes,
        "context_bytes": parts.context_bytes,
        "margin_bytes": parts.margin_bytes + parts.host_bytes,
        "total_bytes": answer.total_bytes,
        "needed_bytes": answer.needed_bytes,
        "budget_bytes": answer.budget_bytes,
        "active_bytes": active,
        "decode_tokens_per_second": round(facts.bandwidth_bytes_per_second / active, 1) if facts and active else None,
        "fits": answer.fits,
        "reasons": list(answer.reasons),
        "warnings": list(answer.warnings),
    }


def default_sequences(facts: NodeFacts | None) -> int:
    """``--max-num-seqs`` when nobody says: vLLM's 256, or what a box with one shared memory can use."""
    return 4 if facts is not None and facts.unified else _SERVER_SEQUENCES
