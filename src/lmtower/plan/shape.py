"""A model as the planner sees it: dimensions of its layers, read once from config.json or GGUF metadata.

Names follow vLLM and Hugging Face. All sizes are elements (not bytes); what an element costs depends on the
quantisation layout (weights) and ``kv_cache_dtype`` (KV cache).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention (DeepSeek): keys and values live as one compressed vector a token."""

    kv_lora_rank: int
    rope_dim: int
    nope_dim: int
    q_lora_rank: int
    """0: queries are projected directly."""
    indexer_heads: int = 0
    indexer_dim: int = 0
    """Sparse attention (DeepSeek V3.2, GLM-5): a second, smaller key cache a layer."""


@dataclass(frozen=True, slots=True)
class Compressed:
    """DeepSeek V4's attention: a window of plain keys, and beside it one key for every ``ratio`` tokens."""

    ratio: int
    """0: the window alone."""
    window: int
    q_lora_rank: int
    o_lora_rank: int
    o_groups: int
    streams: int
    """Residual streams of the hyper-connections (``hc_mult``)."""
    indexer_heads: int = 0
    indexer_dim: int = 0

    @property
    def overlap(self) -> int:
        """Neighbouring groups of four tokens overlap, so their compressor is twice as wide."""
        return 2 if self.ratio == 4 else 1


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention layer. ``window`` is the sliding window in tokens, None: full attention."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None = None
    gated: bool = False
    """An output gate doubles the query projection (Qwen3.5)."""
    bias: bool = False
    output_bias: bool = False
    latent: Latent | None = None
    compressed: Compressed | None = None
    cached: bool = True
    """False where an earlier layer's KV cache is read instead (Gemma 3n/4n), and in encoders."""


@dataclass(frozen=True, slots=True)
class State:
    """A linear layer with a fixed-size state a sequence: Mamba-2 or gated delta net."""

    kind: Literal["mamba2", "gdn"]
    heads: int
    head_dim: int
    state_size: int
    groups: int
    conv_kernel: int
    chunk_size: int = 128
    state_element_bytes: int = 4

    @property
    def inner(self) -> int:
        """Width of the value path."""
        return self.heads * self.head_dim

    def conv_dim(self, groups: int | None = None) -> int:
        """Channels of the short convolution: values and both group-shared vectors (B and C, or Q and K)."""
        return self.inner + 2 * (self.groups if groups is None else groups) * self.state_size


@dataclass(frozen=True, slots=True)
class Mlp:
    """One feed-forward block; with ``experts`` a mixture of them."""

    intermediate: int
    gated: bool = True
    bias: bool = False
    experts: int = 0
    top_k: int = 0
    shared_intermediate: int = 0
    shared_gate: bool = False
    latent: int = 0
    """Experts work on a projection of the hidden state of this width (Nemotron 3 Super); 0: on the hidden state."""

    @property
    def width(self) -> int:
        """Rows of the first projection, per expert."""
        return self.intermediate * (2 if self.gated else 1)


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer. ``name`` is its prefix in the checkpoint, without the model's own prefix."""

    name: str
    attention: Attention | None = None
    state: State | None = None
    mlps: tuple[Mlp, ...] = ()


@dataclass(frozen=True, slots=True)
class Vision:
    """A vision tower: parameters (always kept in 16 bit) and what an image costs."""

    parameters: int
    hidden_size: int
    depth: int
    intermediate: int
    tensors: tuple[int, ...] = ()
    """Elements of each tensor of one block, for the allocator's rounding."""
    deepstack_levels: int = 0
    """Levels whose features enter the language model beside its input (Qwen3-VL)."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Everything that memory depends on, except the number formats."""

    architecture: str
    model_type: str
    hidden_size: int
    vocab_size: int
    layers: tuple[Layer, ...]
    max_position_embeddings: int
    tied_embeddings: bool
    draft_layers: tuple[Layer, ...] = ()
    """Multi-token-prediction layers; loaded only with speculative decoding."""
    vision: Vision | None = None
    rope_dims: tuple[int, ...] = ()
    """Rotary dimensions of each different rope table."""
    rope_positions: int = 0
    """Rows of such a table: trained positions, four times as many where images and videos have their own."""
    encoder: bool = False
    qk_norm: bool = False
    model_element_bytes: int = 2
    known: bool = True
    """False: the architecture is not known; sizes come from the tensors."""
    per_layer_embedding: int = 0
    """Width of Gemma's per-layer input embeddings."""

    @property
    def is_hybrid(self) -> bool:
        """True when some layers keep a state instead of a KV cache."""
        return any(layer.state is not None for layer in self.layers)

    @property
    def is_moe(self) -> bool:
        """True when some layer has experts."""
        return any(mlp.experts for layer in self.layers for mlp in layer.mlps)

    @property
    def state(self) -> State | None:
        """The state of the first linear layer."""
        return next((layer.state for layer in self.layers if layer.state is not None), None)

    @property
    def family(self) -> str:
        """In words: what decides which formulas apply."""
        if self.encoder:
            return "encoder"
        if self.is_hybrid:
            return "Mamba-2 hybrid" if self.state and self.state.kind == "mamba2" else "gated delta net hybrid"
        attentions = [layer.attention for layer in self.layers if layer.attention]
        if any(attention.compressed for attention in attentions):
            return "compressed attention"
        if any(attention.latent for attention in attentions):
            return "latent attention"
        if any(attention.window for attention in attentions):
            return "sliding window"
        return "mixture of experts" if self.is_moe else "dense"
