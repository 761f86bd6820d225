"""Planned engines as the planner gives them for one Spark: the presets, by family."""

from __future__ import annotations

from dataclasses import replace

from lmtower.config.types import Engine, Node, Tower
from lmtower.plan.types import EnginePlan, NodeFacts, NodePlan, Plan
from lmtower.recipes import find

GIB = 1024**3
SPARK = NodeFacts("spark", 130_600_000_000, 121_000_000_000, unified=True, capability=12.1)
CPU = NodeFacts("local", 24 * GIB, 20 * GIB, unified=True)


def row(name: str, model: str, **changes: object) -> EnginePlan:
    """One planned engine; ``changes`` are fields of EnginePlan."""
    plain = EnginePlan(
        name=name,
        nodes=("spark",),
        model=model,
        runtime="vllm",
        version=None,
        recipe=find(model).name,
        max_model_len=32768,
        max_num_seqs=4,
        max_num_batched_tokens=8192,
        kv_cache_dtype="fp8",
        kv_cache_memory_bytes=6 * GIB,
        gpu_memory_utilization=0.25,
        weights_bytes=10 * GIB,
        kv_cache_bytes=6 * GIB,
        overhead_bytes=2 * GIB,
        port=8100,
        start_order=0,
        block_size=16,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


_HYBRID = {"mamba_cache_mode": "align", "max_num_batched_tokens": 8448, "prefix_match_unit": 1664, "block_size": 8320}
FAMILIES: dict[str, EnginePlan] = {
    "nemotron3-super": row(
        "nemotron", "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4", max_model_len=200000, **_HYBRID
    ),
    "nemotron3-super-mtp": row(
        "nemotron",
        "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4",
        speculative_tokens=1,
        **{**_HYBRID, "prefix_match_unit": 496, "block_size": 8432},
    ),
    "nemotron3-nano": row(
        "nano",
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4",
        **{**_HYBRID, "prefix_match_unit": 261, "block_size": 4176},
    ),
    "qwen3-vl": row("eyes", "Qwen/Qwen3-VL-8B-Instruct-FP8", multimodal=True),
    "qwen3": row("qwen", "Qwen/Qwen3-8B", kv_cache_dtype="auto"),
    "qwen3.6": row("qwen", "nvidia/Qwen3.6-35B-A3B-NVFP4", **{**_HYBRID, "prefix_match_unit": 131, "block_size": 2096}),
    "qwen2.5-coder": row("coder", "Qwen/Qwen2.5-Coder-1.5B", max_model_len=8192, max_num_seqs=8, kv_cache_dtype="bf16"),
    "nomic-embed": row(
        "embed", "nomic-ai/nomic-embed-text-v1.5", max_model_len=2048, pooling=True, kv_cache_memory_bytes=None
    ),
    "gpt-oss": row("oss", "openai/gpt-oss-120b", max_model_len=131072, kv_cache_dtype="auto"),
    "gemma4": row("gemma", "google/gemma-4-26B-A4B", multimodal=True),
    "llama": row("llama", "meta-llama/Llama-3.1-8B-Instruct", quantization="fp8"),
    "generic": row("other", "somebody/something-7b", kv_cache_dtype="auto"),
}


def plan_of(*rows: EnginePlan, nodes: tuple[NodeFacts, ...] = (SPARK,)) -> Plan:
    """A plan that fits."""
    return Plan(rows, tuple(NodePlan(facts, (), 0, 0, 0) for facts in nodes), fits=True)


def tower_of(*rows: EnginePlan, nodes: dict[str, Node] | None = None, **engine: object) -> Tower:
    """A tower file with these engines on one Spark reached by ssh; ``engine`` holds further keys of each."""
    spark = {"spark": Node(address="ssh://ops@spark.lan", hardware="dgx-spark", bind="10.0.0.5")}
    engines = {each.name: Engine.model_validate({"model": each.model, "nodes": each.nodes, **engine}) for each in rows}
    return Tower(nodes=spark if nodes is None else nodes, engines=engines, personas={})
