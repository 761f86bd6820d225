"""GGUF models for llama.cpp: shape and sizes from the file's metadata, and the cache they need.

llama.cpp keeps one contiguous cache of ``context × sequences`` tokens: ``kv_heads × (key + value) × 2 B`` a layer and
token in f16; sliding-window layers hold the window and one micro-batch; recurrent layers one state a sequence.
The compute buffer is dominated by the logits of one micro-batch (512 rows of fp32).
"""

from __future__ import annotations

from dataclasses import dataclass

from lmtower.plan.formats import cdiv

_MICRO_BATCH = 512
_ELEMENT_BYTES = {
    "auto": 2.0, "f16": 2.0, "fp16": 2.0, "bf16": 2.0, "f32": 4.0,
    "q8_0": 34 / 32, "fp8": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32, "q4_0": 18 / 32,
}  # fmt: skip
_CONTEXT = 300 * 1024**2
"""CUDA context and ggml's pools; a CPU process holds less."""


@dataclass(frozen=True, slots=True)
class GgufLayer:
    """Keys and values of one layer; ``window`` None: full attention. ``state_bytes``: recurrent state instead."""

    kv_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    window: int | None = None
    state_bytes: int = 0


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A GGUF file as the planner sees it."""

    architecture: str
    name: str
    file_bytes: int
    layers: tuple[GgufLayer, ...]
    hidden_size: int
    intermediate: int
    vocab_size: int
    context_length: int
    active_bytes: int = 0
    encoder: bool = False


def cache_dtypes() -> tuple[str, ...]:
    """Cache types that llama.cpp knows (``fp8`` means q8_0)."""
    return tuple(_ELEMENT_BYTES)


@dataclass(frozen=True, slots=True)
class TokenCache:
    """llama.cpp's cache behind the same questions as ``KvLayout``; its blocks are single bytes."""

    model: GgufModel
    element_bytes: float = 2.0
    bytes_per_block: int = 1
    block_size: int = 1

    def blocks_per_request(self, length: int) -> int:
        """Bytes of one sequence of ``length`` tokens."""
        total = 0.0
        for layer in self.model.layers:
            tokens = length if layer.window is None else min(length, cdiv(layer.window + _MICRO_BATCH, 256) * 256)
            total += (
                layer.state_bytes + tokens * layer.kv_heads * (layer.key_dim + layer.value_dim) * self.element_bytes
            )
        return 0 if self.model.encoder else int(total)

    def bytes_per_request(self, length: int) -> int:
        """The same: blocks are bytes."""
        return self.blocks_per_request(length)

    def blocks(self, pool_bytes: int) -> int:
        """The same: blocks are bytes."""
        return max(0, pool_bytes)

    def concurrency(self, blocks: int, length: int) -> float:
        """Sequences of ``length`` tokens in the pool."""
        needed = self.blocks_per_request(length)
        return blocks / needed if needed else 0.0

    def tokens(self, blocks: int, length: int) -> int:
        """Tokens in the pool, in sequences of that length."""
        return int(self.concurrency(blocks, length) * length)

    def longest(self, blocks: int, limit: int) -> int:
        """The longest sequence that fits, at most ``limit``."""
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.blocks_per_request(middle) <= blocks else (low, middle - 1)
        return low


def token_cache(model: GgufModel, dtype: str) -> TokenCache:
    """The cache of a GGUF model. Raises KeyError for a dtype that llama.cpp does not know."""
    return TokenCache(model, _ELEMENT_BYTES[dtype])


def compute_bytes(model: GgufModel, *, gpu: bool) -> int:
    """llama.cpp's compute buffer and, on a GPU, its context."""
    rows = model.vocab_size + 6 * model.intermediate + 10 * model.hidden_size
    return 4 * _MICRO_BATCH * rows + (_CONTEXT if gpu else _CONTEXT // 4)
