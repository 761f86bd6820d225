"""The tensors that vLLM allocates for a model, fused as it fuses them: q+k+v, gate+up, all experts of a layer.

Theory of operation: "Model loading took X GiB" is what the allocator handed out. It rounds each tensor over
10 MiB up to 2 MiB, so sizes matter tensor by tensor, not only their sum (a plain sum is 3 % low on a 1.5B model).
Tensor parallelism divides rows (column-parallel) or columns (row-parallel); norms and routers are copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lmtower.plan.formats import BF16, FP8, FP32, MXFP4, NVFP4, Format, cdiv
from lmtower.plan.quantisation import Layout
from lmtower.plan.shape import Attention, Compressed, Layer, Mlp, ModelShape, State

_PART_ROWS = 64
"""Vocabulary rows are padded to a multiple of this."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Bytes of one allocation. ``part`` says where it belongs: experts, attention, state, mlp, embedding, vision…"""

    part: str
    bytes: int
    format: str = "bf16"
    active: float = 1.0
    """Share of it that one decoded token reads."""


@dataclass(frozen=True, slots=True)
class Build:
    """Choices that change what is allocated."""

    layout: Layout
    tensor_parallel: int = 1
    draft: bool = False
    whole_blocks: bool = True
    """vLLM 0.21 and later: the allocator does not cut blocks over 20 MiB while it loads."""
    text_only: bool = False
    """``--language-model-only``: the vision tower stays away."""
    max_num_batched_tokens: int = 0
    expert_padding: tuple[int, int] = (1, 1)
    """MXFP4 experts: hidden and intermediate are rounded up to these multiples by the kernel in use."""


def tensors(shape: ModelShape, build: Build) -> Iterator[Tensor]:
    """Every tensor of one rank."""
    tp = build.tensor_parallel
    rows = cdiv(cdiv(shape.vocab_size, _PART_ROWS) * _PART_ROWS, tp)
    hidden = shape.hidden_size
    yield from _emit("embedding", BF16.tensors(rows, hidden), BF16, active=hidden / max(1, rows * hidden))
    if not shape.tied_embeddings and not shape.encoder:
        yield from _matrix("lm_head", build.layout.of(("lm_head",)) if build.layout.declared else BF16, rows, hidden)
    elif shape.tied_embeddings and not shape.encoder:
        yield Tensor("lm_head", 0, "bf16")
    for layer in shape.layers:
        yield from _layer(layer, shape, build)
    yield Tensor("norms", hidden * 2)
    if shape.per_layer_embedding:
        width = shape.per_layer_embedding * len(shape.layers)
        yield from _emit("embedding", BF16.tensors(rows, width), BF16, active=1 / max(1, rows))
        yield from _emit("embedding", BF16.tensors(cdiv(width, tp), hidden), BF16)
    yield from buffers(shape, build)
    if shape.vision is not None and not build.text_only:
        yield from _vision(shape, tp)
    if build.draft and shape.draft_layers:
        yield from _draft(shape, build)


def buffers(shape: ModelShape, build: Build) -> Iterator[Tensor]:
    """What a model allocates beside its checkpoint: rope tables, and Qwen3-VL's input for each deepstack level.

    Qwen3-VL-8B with 8,192 batch tokens: 3 × 64 MiB of the 16.79 GiB on an H100.
    """
    for dims in shape.rope_dims:
        yield Tensor("rope", shape.rope_positions * dims * shape.model_element_bytes, active=0.0)
    kinds = [layer.attention.compressed for layer in shape.layers if layer.attention is not None]
    streams = max((kind.streams for kind in kinds if kind is not None), default=0)
    if streams:  # DeepSeek V4 keeps its residual streams for the draft
        yield Tensor("attention", 2 * build.max_num_batched_tokens * streams * shape.hidden_size, active=0.0)
    if shape.vision is not None and not build.text_only:
        for _ in range(shape.vision.deepstack_levels):
            yield Tensor("vision", 2 * build.max_num_batched_tokens * shape.hidden_size, active=0.0)


def _emit(part: str, sizes: tuple[int, ...], form: Format, active: float = 1.0) -> Iterator[Tensor]:
    for size in sizes:
        yield Tensor(part, size, form.name, active)


def _matrix(part: str, form: Format, rows: int, columns: int, copies: int = 1, active: float = 1.0) -> Iterator[Tensor]:
    yield from _emit(part, form.tensors(rows, columns, copies), form, active)


def _layer(layer: Layer, shape: ModelShape, build: Build) -> Iterator[Tensor]:
    if layer.attention is not None:
        yield from _attention(layer, layer.attention, shape, build)
    if layer.state is not None:
        yield from _state(layer, layer.state, shape, build)
    for index, mlp in enumerate(layer.mlps):
        yield from _mlp(layer, mlp, shape, build, second=index > 0)
    yield Tensor("norms", 4 * shape.hidden_size)


def _names(layer: Layer, *suffixes: str) -> tuple[str, ...]:
    return tuple(f"{layer.name}.{suffix}" for suffix in suffixes)


def _attention(layer: Layer, attention: Attention, shape: ModelShape, build: Build) -> Iterator[Tensor]:
    tp, hidden = build.tensor_parallel, shape.hidden_size
    heads = cdiv(attention.heads, tp)
    if attention.latent is not None:
        yield from _latent(layer, attention, shape, build)
        return
    if attention.compressed is not None:
        yield from _compressed(layer, attention, attention.compressed, shape, build)
        return
    kv = max(1, attention.kv_heads // tp)
    keys = kv * (attention.head_dim + attention.value_dim) if attention.cached or shape.encoder else 0
    rows = heads * attention.head_dim * (2 if attention.gated else 1) + keys
    form = build.layout.of(_names(layer, "self_attn.q_proj", "mixer.q_proj", "self_attn.qkv_proj", "attn.Wqkv"))
    yield from _matrix("attention", _undeclared(build, form, "attention"), rows, hidden)
    form = build.layout.of(_names(layer, "self_attn.o_proj", "mixer.o_proj", "attn.out_proj"))
    yield from _matrix("attention", _undeclared(build, form, "attention"), hidden, heads * attention.value_dim)
    yield Tensor(
        "attention",
        2 * (rows * attention.bias + hidden * attention.output_bias + 2 * attention.head_dim * shape.qk_norm),
    )


def _latent(layer: Layer, attention: Attention, shape: ModelShape, build: Build) -> Iterator[Tensor]:
    """MLA keeps kv_b_proj twice: as loaded, and split and absorbed in 16 bit for decoding (``W_UK_T``, ``W_UV``)."""
    latent = attention.latent
    assert latent is not None
    hidden, heads = shape.hidden_size, cdiv(attention.heads, build.tensor_parallel)
    low = latent.kv_lora_rank + latent.rope_dim
    first = build.layout.of(_names(layer, "self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"))
    second = build.layout.of(_names(layer, "self_attn.q_b_proj", "self_attn.q_proj"))
    if latent.q_lora_rank:
        yield from _matrix("attention", first, latent.q_lora_rank + low, hidden)
        yield from _matrix("attention", second, heads * attention.head_dim, latent.q_lora_rank)
    else:
        yield from _matrix("attention", second, heads * attention.head_dim, hidden)
        yield from _matrix("attention", first, low, hidden)
    up = heads * (latent.nope_dim + attention.value_dim)
    yield from _matrix("attention", build.layout.of(_names(layer, "self_attn.kv_b_proj")), up, latent.kv_lora_rank)
    yield from _matrix("attention", BF16, up, latent.kv_lora_rank)
    yield from _matrix(
        "attention", build.layout.of(_names(layer, "self_attn.o_proj")), hidden, heads * attention.value_dim
    )
    if latent.indexer_dim:
        width = latent.indexer_heads * latent.indexer_dim
        yield from _matrix(
            "attention", build.layout.of(_names(layer, "self_attn.indexer.wq_b")), width, latent.q_lora_rank or hidden
        )
        yield from _matrix("attention", BF16, latent.indexer_dim + latent.indexer_heads, hidden)


def _compressed(
    layer: Layer, attention: Attention, kind: Compressed, shape: ModelShape, build: Build
) -> Iterator[Tensor]:
    """DeepSeek V4: low-rank queries and outputs as declared; compressors, index weights and streams as they compute."""
    hidden, width = shape.hidden_size, attention.head_dim
    heads, groups = cdiv(attention.heads, build.tensor_parallel), cdiv(kind.o_groups, build.tensor_parallel)
    form = build.layout.of(_names(layer, "attn.wq_b", "self_attn.wq_b"))
    yield from _matrix("attention", form, kind.q_lora_rank + width, hidden)
    yield from _matrix("attention", form, heads * width, kind.q_lora_rank)
    yield from _matrix("attention", form, groups * kind.o_lora_rank, attention.heads * width // kind.o_groups)
    yield from _matrix("attention", form, hidden, groups * kind.o_lora_rank)
    for compressed in (width, kind.indexer_dim) if kind.ratio > 1 else ():
        yield from _matrix("attention", BF16, 2 * kind.overlap * compressed, hidden)
    if kind.indexer_dim:
        yield from _matrix("attention", form, kind.indexer_heads * kind.indexer_dim, kind.q_lora_rank)
        yield from _matrix("attention", BF16, kind.indexer_heads, hidden)
    mixes, streams = (2 + kind.streams) * kind.streams, kind.streams * hidden
    yield from _matrix("attention", FP32, 2 * mixes, streams)


def _state(layer: Layer, state: State, shape: ModelShape, build: Build) -> Iterator[Tensor]:
    tp, hidden = build.tensor_parallel, shape.hidden_size
    if state.kind == "mamba2":
        projection = cdiv(state.inner + state.conv_dim() + state.heads, tp)
        into, out = _names(layer, "mixer.in_proj", "mamba.in_proj"), _names(layer, "mixer.out_proj", "mamba.out_proj")
    else:
        projection = cdiv(state.conv_dim() + state.inner, tp)
        into = _names(layer, "linear_attn.in_proj_qkv", "linear_attn.in_proj_qkvz", "linear_attn.in_proj_z")
        out = _names(layer, "linear_attn.out_proj")
        yield from _matrix("state", BF16, cdiv(2 * state.heads, tp), hidden)
    yield from _matrix("state", _undeclared(build, build.layout.of(into), "state"), projection, hidden)
    yield from _matrix("state", _undeclared(build, build.layout.of(out), "state"), hidden, cdiv(state.inner, tp))
    small = state.conv_dim() * (state.conv_kernel + 1) * 2 + 3 * state.heads * 4 + state.inner * 2
    yield Tensor("state", cdiv(small, tp))


def _mlp(layer: Layer, mlp: Mlp, shape: ModelShape, build: Build, *, second: bool) -> Iterator[Tensor]:
    tp, hidden = build.tensor_parallel, shape.hidden_size
    if mlp.experts:
        yield from _experts(layer, mlp, shape, build, second=second)
        return
    up = build.layout.of(_names(layer, "mlp.gate_proj", "mlp.up_proj", "mixer.up_proj", "mlp.gate_up_proj"))
    down = build.layout.of(_names(layer, "mlp.down_proj", "mixer.down_proj"))
    yield from _matrix("mlp", up, cdiv(mlp.width, tp), hidden)
    yield from _matrix("mlp", down, hidden, cdiv(mlp.intermediate, tp))
    yield Tensor("mlp", 2 * (mlp.width + hidden) * mlp.bias)


def _experts(layer: Layer, mlp: Mlp, shape: ModelShape, build: Build, *, second: bool) -> Iterator[Tensor]:
    tp, hidden = build.tensor_parallel, shape.hidden_size
    block = f"{_expert_block(shape.model_type)}.experts".removeprefix(".")
    names = _names(layer, block, *(f"{block}.0.{name}" for name in ("up_proj", "gate_proj", "w1")))
    form = build.layout.of(names, expert=True)
    width, inner = mlp.latent or hidden, cdiv(mlp.intermediate, tp)
    active = mlp.top_k / mlp.experts
    if form is MXFP4:
        true = width * inner
        width, inner = (cdiv(size, pad) * pad for size, pad in zip((width, inner), build.expert_padding, strict=True))
        active *= true / (width * inner)
    yield from _matrix("experts", form, inner * (2 if mlp.gated else 1), width, mlp.experts, active)
    yield from _matrix("experts", form, width, inner, mlp.experts, active)
    if mlp.bias:
        yield Tensor("experts", mlp.experts * (inner * (2 if mlp.gated else 1) + width) * 2, active=active)
    router = FP32 if shape.model_type == "nemotron_h" else BF16
    yield from _matrix("router", router, mlp.experts, hidden)
    if mlp.latent:
        for name in ("mixer.fc1_latent_proj", "mixer.fc2_latent_proj"):
            latent = build.layout.of(_names(layer, name))
            yield from _matrix("mlp", _undeclared(build, latent, "attention"), mlp.latent, hidden)
    if mlp.shared_intermediate:
        shared = build.layout.of(
            _names(
                layer,
                "mlp.shared_expert.up_proj",
                "mlp.shared_experts.up_proj",
                "mixer.shared_experts.up_proj",
                "shared_mlp.up_proj",
            )
        )
        shared = _undeclared(build, shared, "state")
        yield from _matrix("mlp", shared, cdiv(mlp.shared_intermediate * (2 if mlp.gated else 1), tp), hidden)
        yield from _matrix("mlp", shared, hidden, cdiv(mlp.shared_intermediate, tp))
        if mlp.shared_gate:
            yield Tensor("mlp", 2 * hidden)


def _expert_block(model_type: str) -> str:
    """Module that holds the experts, as the checkpoints of each family name it."""
    if model_type.startswith("gemma4"):
        return ""
    return {"nemotron_h": "mixer", "mixtral": "block_sparse_moe", "minimax_m2": "block_sparse_moe"}.get(
        model_type, "mlp"
    )


def _undeclared(build: Build, form: Format, part: str) -> Format:
    """What a stub most likely stands for: NVIDIA's mixed releases keep attention in bf16 and states in FP8.

    Reproduces the 68.1 GiB of the 120B (H200, vLLM 0.25.1); the public checkpoint is 2 % above.
    """
    if not build.layout.stub or form is not NVFP4:
        return form
    return BF16 if part == "attention" else FP8


def _vision(shape: ModelShape, tp: int) -> Iterator[Tensor]:
    vision = shape.vision
    assert vision is not None
    blocks = sum(vision.tensors) * vision.depth
    for size in vision.tensors:
        for _ in range(vision.depth):
            yield Tensor("vision", cdiv(2 * size, tp), active=0.0)
    yield Tensor("vision", 2 * (vision.parameters - blocks), active=0.0)


def _draft(shape: ModelShape, build: Build) -> Iterator[Tensor]:
    """Draft layers stay in 16 bit in every release known here; embeddings and head are the target's own."""
    plain = (
        Build(Layout(), build.tensor_parallel) if build.layout.stub or not _drafts_quantised(shape, build) else build
    )
    for layer in shape.draft_layers:
        for tensor in _layer(layer, shape, plain):
            yield Tensor("draft", tensor.bytes, tensor.format, tensor.active)
    yield from _matrix("draft", BF16, shape.hidden_size, 2 * shape.hidden_size)


def _drafts_quantised(shape: ModelShape, build: Build) -> bool:
    names = _names(shape.draft_layers[0], "self_attn.q_proj", "mlp.experts", "mlp.up_proj")
    return build.layout.of(names, expert=True) is not BF16
