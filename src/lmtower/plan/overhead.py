"""What a vLLM process takes beside weights and KV cache: activations, CUDA graphs, sampler, context.

Measured on an H200 with vLLM 0.25.1, S = max_num_seqs, b = max_num_batched_tokens, H hidden, I intermediate,
V vocabulary; bytes. Dense activations agree within 0.2 % on 17 rows, mixtures and hybrids within 25 %.
The total ``0.74 GiB + weights + KV + activation + graphs + 6 S V`` was never more than 0.13 GiB below what the process
held after start; under traffic it grew by up to 0.62 GiB more, so one GiB is added for each engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmtower.plan.formats import cdiv
from lmtower.plan.quantisation import Layout
from lmtower.plan.shape import Mlp, ModelShape
from lmtower.plan.types import Overhead
from lmtower.plan.versions import Rules

_GIB = 1024**3
CONTEXT = int((0.514 + 0.225) * _GIB)
"""CUDA context and non-torch memory of one process (H200, 0.25.1)."""
PARALLEL = int(1.6 * _GIB)
"""What each rank takes more when a copy is split over GPUs: NCCL and all-reduce buffers. 1.18 to 1.59 GiB on two H100
with NVLink (four engines, 0.25.1; the same model unsplit: 0.16), outside of what vLLM's profiling sees.
"""
MARGIN = _GIB
"""Growth under traffic: "plan 1 GiB spare an engine"."""
_POOLING_MARGIN = _GIB // 2
_WORKSPACE = 33_560_000
"""cuBLAS and attention workspaces, in every dense row."""
_IMAGE_TOKENS = 16384
"""Largest image that vLLM profiles with: its processor's own limit."""


@dataclass(frozen=True, slots=True)
class Load:
    """How the engine will be driven."""

    rules: Rules
    max_num_seqs: int
    max_num_batched_tokens: int
    tensor_parallel: int = 1
    speculative_tokens: int = 0
    eager: bool = False
    image_side: int | None = None
    """Longer side that personas allow, in pixels; None: whatever the processor allows."""
    text_only: bool = False


def overhead(shape: ModelShape, layout: Layout, load: Load, *, unified: bool = False, spare: bool = True) -> Overhead:
    """All of it. ``spare``: with the margin of one GiB. On unified memory half of that is Python's."""
    activation = activation_bytes(shape, layout, load)
    margin = (_POOLING_MARGIN if shape.encoder else MARGIN) if spare else 0
    host = margin // 2 if unified else 0
    return Overhead(
        activation_bytes=activation,
        graph_bytes=graph_bytes(shape, load),
        sampler_bytes=0 if shape.encoder else 6 * load.max_num_seqs * cdiv(shape.vocab_size, load.tensor_parallel),
        context_bytes=CONTEXT + (PARALLEL if load.tensor_parallel > 1 else 0),
        host_bytes=host,
        encoder_bytes=encoder_bytes(shape, load, activation),
        margin_bytes=margin - host,
    )


def activation_bytes(shape: ModelShape, layout: Layout, load: Load) -> int:
    """Peak of vLLM's profiling run ("peak activation"), by the kind of model."""
    if shape.encoder:
        return _WORKSPACE + 2 * load.max_num_batched_tokens * (3 * _widest(shape) + 4 * shape.hidden_size)
    peak = _mixture(shape, layout, load) if shape.is_moe else _dense(shape, load)
    if shape.is_hybrid:
        peak = max(peak, _WORKSPACE + load.max_num_batched_tokens * _state_bytes_per_token(shape, load))
    if load.rules.number < (0, 13, 0) and shape.is_moe:
        # gpt-oss-120b on an H100, 0.10.1: 7.4 GiB where later versions take 4.
        peak *= 2
    return peak


def _dense(shape: ModelShape, load: Load) -> int:
    """Eager: ``33.56 MB + max(2b(3I + 4H), 6SV + 2bH + 10240 S)``, 3H on Llama, which has no q/k norm to copy for.

    With torch.compile: ``max(2VH + 4bH + 1.07 MB, 33.56 MB + 6SV + 2bH + 10240 S)``: a copy as large as the embedding.
    Reproduces Qwen3-8B: 0.844 (eager, 8192), 3.281 (32768), 0.973 (1024 seqs), 1.285 and 1.191 (compiled) GiB.
    """
    b, s, hidden = load.max_num_batched_tokens, load.max_num_seqs, shape.hidden_size
    vocab = cdiv(shape.vocab_size, load.tensor_parallel)
    sampler = _WORKSPACE + 6 * s * vocab + 2 * b * hidden + 10240 * s
    forward = _WORKSPACE + 2 * b * (
        3 * cdiv(_widest(shape), load.tensor_parallel) + (3 if shape.model_type == "llama" else 4) * hidden
    )
    if load.eager:
        return max(sampler, forward)
    compiled = 2 * vocab * hidden + 4 * b * hidden + 1_070_000
    # A large batch needs its own forward whatever the compiler saves; only the MLP's is fused away.
    return max(compiled, sampler, forward if shape.is_hybrid else 0)


def _mixture(shape: ModelShape, layout: Layout, load: Load) -> int:
    """The sampler's peak, ``16SV + 40 MB + b (W + 12H)``, or the forward pass, ``b (W + 6H + 12Q)``: Q query width.

    ``W = 2 topk (max(first projection, K) + I)`` is the experts' workspace, K what experts read; it stays allocated.
    Qwen3-30B: 1.146 GiB (256 seqs), 0.836 (16 seqs, the forward pass). gpt-oss runs one monolithic kernel that keeps
    no workspace: ``16SV + 26 MB + 5.6 kB`` a token after it. Experts on a latent (Nemotron 3 Super): ``0.41 GB +
    444 kB`` a token, whatever S: 1.1 times the expert term.
    """
    b, hidden = load.max_num_batched_tokens, shape.hidden_size
    logits = 16 * load.max_num_seqs * cdiv(shape.vocab_size, load.tensor_parallel)
    mlp = _expert_mlp(shape)
    inner = cdiv(mlp.intermediate, load.tensor_parallel)
    first = inner * (2 if mlp.gated or mlp.latent else 1)
    workspace = 2 * mlp.top_k * (max(first, mlp.latent or hidden) + inner)
    if mlp.latent:
        return 410_000_000 + int(1.1 * (workspace + 12 * hidden)) * b
    attention = 12 * cdiv(_query_width(shape), load.tensor_parallel)
    if layout.method == "mxfp4":
        return max(logits + 26_000_000 + 5_600 * b, _WORKSPACE + b * (6 * hidden + max(workspace, attention)))
    sampler = logits + 40_000_000 + b * (workspace + 12 * hidden)
    return max(sampler, _WORKSPACE + b * (workspace + 6 * hidden + attention))


def _state_bytes_per_token(shape: ModelShape, load: Load) -> int:
    """What a linear layer's prefill holds for each token: projections, convolution, chunk states, values.

    Gated delta net, read off Qwen3.6-27B on an H100 (178,272 B a token at 8,192 and 32,768): ``4H + 4 conv + 15 V +
    states in 16 bit``, V the value width. Mamba-2 is an upper bound: no log has shown its peak alone.
    """
    state, tp = shape.state, load.tensor_parallel
    assert state is not None
    if state.kind == "gdn":
        states = 2 * state.heads * state.head_dim * state.state_size // state.chunk_size
        return cdiv(4 * state.conv_dim() + 15 * state.inner + states, tp) + 4 * shape.hidden_size
    chunk_states = 4 * state.heads * state.head_dim * state.state_size // state.chunk_size
    projections = 2 * (state.conv_dim() + state.inner)
    return cdiv(projections + 6 * state.conv_dim() + chunk_states + 10 * state.inner, tp) + 8 * shape.hidden_size


def graph_bytes(shape: ModelShape, load: Load) -> int:
    """CUDA graphs: about 10.5 MiB for each captured size of a 36-layer model, and 80 MiB. 0 in eager mode.

    Qwen3-8B: 0.15 GiB (16 seqs, 7 sizes), 0.60 (256 seqs, 51 sizes). 0.9.2 took 3.3 times as much (2.24 GiB, 67 sizes).
    """
    if load.eager or shape.encoder:
        return 0
    sizes = len(captured_sizes(load.max_num_seqs, load.speculative_tokens))
    scale = 3.3 if load.rules.number < (0, 12, 0) else 1.0
    return int((0.08 + 0.0105 * sizes * len(shape.layers) / 36) * _GIB * scale)


def captured_sizes(max_num_seqs: int, speculative_tokens: int = 0) -> tuple[int, ...]:
    """Batch sizes that vLLM captures: 1, 2, 4, then steps of 8 to 256 and of 16 above, up to 2 × seqs or 512."""
    top = min(512, 2 * max_num_seqs * (1 + speculative_tokens))
    return tuple(size for size in (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)) if size <= top)


def encoder_bytes(shape: ModelShape, load: Load, activation: int) -> int:
    """The encoder cache, and what the vision tower's pass needs above the language model's.

    Cache: one budget of embeddings (``max(b, tokens of the largest image)``). Tower: 4I + 8h bytes a patch;
    Qwen3-VL-30B-FP8 on an RTX PRO 6000 left 1.7 GiB unexplained without it.
    """
    vision = shape.vision
    if vision is None or load.text_only:
        return 0
    tokens = _IMAGE_TOKENS if load.image_side is None else min(_IMAGE_TOKENS, cdiv(load.image_side, 32) ** 2)
    cache = max(load.max_num_batched_tokens, tokens) * shape.hidden_size * 2
    tower = 4 * tokens * (4 * vision.intermediate + 8 * vision.hidden_size)
    return cache + max(0, tower - activation)


def _widest(shape: ModelShape) -> int:
    return max(
        (mlp.intermediate for layer in shape.layers for mlp in layer.mlps if not mlp.experts), default=shape.hidden_size
    )


def _query_width(shape: ModelShape) -> int:
    return max(
        (layer.attention.heads * layer.attention.head_dim for layer in shape.layers if layer.attention), default=0
    )


def _expert_mlp(shape: ModelShape) -> Mlp:
    return next(mlp for layer in shape.layers for mlp in layer.mlps if mlp.experts)
