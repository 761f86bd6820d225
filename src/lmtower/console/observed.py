"""What engines and node agents measure of themselves, from their metrics pages. Unknown stays unknown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lmtower.console.samples import parse

_ENGINE = {
    "vllm:kv_cache_usage_perc": "kv_cache_used",
    "vllm:gpu_cache_usage_perc": "kv_cache_used",
    "llamacpp:kv_cache_usage_ratio": "kv_cache_used",
    "vllm:num_requests_running": "running",
    "llamacpp:requests_processing": "running",
    "vllm:num_requests_waiting": "waiting",
    "llamacpp:requests_deferred": "waiting",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:prefix_cache_queries_total": "prefix_queries",
    "vllm:prefix_cache_hits_total": "prefix_hits",
    "llamacpp:prompt_tokens_cached_total": "prefix_hits",
    "llamacpp:prompt_tokens_total": "prefix_computed",
    "process_resident_memory_bytes": "process_bytes",
}
_NODE = {
    "lmtower_node_memory_total_bytes": "total_bytes",
    "lmtower_node_memory_available_bytes": "available_bytes",
    "lmtower_node_memory_reserve_bytes": "reserve_bytes",
}
_GPU_PROCESS = "lmtower_node_gpu_process_memory_bytes"


@dataclass(frozen=True, slots=True)
class Observed:
    """Numbers by engine, numbers by node, and bytes by (node, engine)."""

    engines: Mapping[str, Mapping[str, float]]
    nodes: Mapping[str, Mapping[str, float]]
    memory: Mapping[tuple[str, str], float]


def observations(
    pages: Iterable[tuple[Mapping[str, str], str]], local: Mapping[str, Mapping[str, float]] | None = None
) -> Observed:
    """Replicas of an engine are added up, except shares, of which the largest counts.

    ``local`` is what is known of nodes without their agents, which know more.
    """
    engines: dict[str, dict[str, float]] = {}
    nodes: dict[str, dict[str, float]] = {name: dict(numbers) for name, numbers in (local or {}).items()}
    memory: dict[tuple[str, str], float] = {}
    for target, page in pages:
        for name, labels, value in parse(page):
            if "engine" in target and (field := _ENGINE.get(name)):
                into = engines.setdefault(target["engine"], {})
                before = into.get(field, 0.0)
                into[field] = max(before, value) if field == "kv_cache_used" else before + value
            elif "node" in target and (field := _NODE.get(name)):
                nodes.setdefault(target["node"], {})[field] = value
            elif "node" in target and name == _GPU_PROCESS:
                key = target["node"], labels.get("process", "")
                memory[key] = memory.get(key, 0.0) + value
    return Observed(engines, nodes, memory)


def hit_rate(numbers: Mapping[str, float]) -> float | None:
    """The engine's own prefix cache hit rate since it started."""
    hits = numbers.get("prefix_hits")
    queries = numbers.get("prefix_queries")
    if queries is None and hits is not None and "prefix_computed" in numbers:
        # llama.cpp counts what it computed and what it found in the cache apart from each other
        queries = hits + numbers["prefix_computed"]
    return hits / queries if hits is not None and queries else None
