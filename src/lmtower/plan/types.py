"""What the planner takes and gives: facts of a node, the plan of an engine, the plan of a tower. Bytes throughout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What is known of a node before anything starts there: from the hardware catalogue, or probed.

    ``memory_total_bytes`` is what CUDA reports as total for *one* GPU (121.63 GiB on a GB10), because vLLM's
    utilisation is a fraction of it. On unified memory ``memory_available_bytes`` is MemAvailable.
    """

    name: str
    memory_total_bytes: int
    memory_available_bytes: int
    unified: bool = False
    bandwidth_bytes_per_second: float = 0.0
    supports: frozenset[str] = frozenset()
    """Number formats the chip computes in: ``bf16``, ``fp8``, ``fp4``."""
    gpus: int = 1
    hardware: str | None = None
    reserve_bytes: int | None = None
    """Kept free for the operating system. None: 12 GiB on unified memory, 1 GiB on a card."""
    runtimes: frozenset[str] = frozenset({"vllm", "llamacpp"})
    capability: float = 0.0
    """CUDA compute capability (12.1 on a GB10); 0: not known or none."""
    boot_free_bytes: tuple[int, int] | None = None
    """What such machines have free after boot, least and most; None where nothing is known. Used when not measured."""
    default_batch_tokens: int = 8192
    """vLLM's own default of ``--max-num-batched-tokens`` there."""

    @property
    def reserve(self) -> int:
        """Bytes that no plan may use."""
        if self.reserve_bytes is not None:
            return self.reserve_bytes
        return (12 if self.unified else 1) * 1024**3


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a process takes beside weights and KV cache. Sums to ``EnginePlan.overhead_bytes``."""

    activation_bytes: int = 0
    graph_bytes: int = 0
    sampler_bytes: int = 0
    context_bytes: int = 0
    host_bytes: int = 0
    """Python on the CPU side; counts only on unified memory."""
    encoder_bytes: int = 0
    correction_bytes: int = 0
    """Added or taken off by an observation of a real start."""
    margin_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """The sum, never negative."""
        parts = (
            self.activation_bytes,
            self.graph_bytes,
            self.sampler_bytes,
            self.context_bytes,
            self.host_bytes,
            self.encoder_bytes,
            self.correction_bytes,
            self.margin_bytes,
        )
        return max(0, sum(parts))


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """One engine as it will be started. Flags are spelled as vLLM spells them; None: leave the flag out.

    ``nodes`` holds one name a replica, or all nodes of one copy when ``tensor_parallel`` spans them.
    External engines have zero bytes and no port.
    """

    name: str
    nodes: tuple[str, ...]
    model: str
    runtime: str
    version: str | None
    recipe: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_dtype: str
    kv_cache_memory_bytes: int | None
    gpu_memory_utilization: float | None
    weights_bytes: int
    kv_cache_bytes: int
    overhead_bytes: int
    port: int | None
    start_order: int
    block_size: int = 0
    mamba_cache_mode: str | None = None
    """``none``, ``align``, ``all`` on hybrids; None on models without state."""
    prefix_match_unit: int | None = None
    prefix_caching: bool = True
    tensor_parallel: int = 1
    speculative_tokens: int = 0
    quantization: str | None = None
    overhead: Overhead = field(default_factory=Overhead)
    num_blocks: int = 0
    kv_cache_tokens: int = 0
    max_concurrency: float = 0.0
    kv_bytes_per_request: int = 0
    trained_context: int = 0
    max_context: int = 0
    """The longest context, up to the trained one, that this engine could have beside all others."""
    prefix_block_tokens: int = 0
    """Tokens a shared prefix must have before it can hit; 0: no prefix cache."""
    active_bytes: int = 0
    """Bytes read for one decoded token: what bounds decode speed."""
    decode_tokens_per_second: float = 0.0
    """Rule of thumb for one stream: bandwidth / active bytes. 0: bandwidth unknown."""
    uncertainty: float = 0.0
    """Relative uncertainty of ``weights_bytes``; more than 0 when the layout is not declared."""
    pooling: bool = False
    """True for encoders: no KV cache, `--runner pooling`."""
    multimodal: bool = False
    devices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The GPUs that it uses on each of its nodes that has several."""
    warnings: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Memory that one copy takes on each of its nodes."""
        return self.weights_bytes + self.kv_cache_bytes + self.overhead_bytes


@dataclass(frozen=True, slots=True)
class NodePlan:
    """A node and what the plan puts there."""

    facts: NodeFacts
    engines: tuple[str, ...]
    used_bytes: int
    reserve_bytes: int
    free_bytes: int
    """What stays beside the reserve. Negative: does not fit."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A tower, planned. ``engines`` are in the order of the file; start them by ``start_order``, one at a time."""

    engines: tuple[EnginePlan, ...]
    nodes: tuple[NodePlan, ...]
    fits: bool
    reasons: tuple[str, ...] = ()
    """Why it does not fit, then the smallest changes that make it fit."""
    warnings: tuple[str, ...] = ()

    def engine(self, name: str) -> EnginePlan:
        """The engine of that name. Raises KeyError."""
        for engine in self.engines:
            if engine.name == name:
                return engine
        raise KeyError(name)
