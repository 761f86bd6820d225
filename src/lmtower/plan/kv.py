"""KV cache arithmetic: how vLLM cuts a pool of bytes into blocks, and how many blocks a request takes.

Theory of operation. Every layer that keeps something asks for pages: attention pages hold ``block`` tokens, a state
page holds one state. All pages of a model must have one size, so on hybrids the attention block grows until its page
holds a state (Nemotron-3-Super with fp8 KV: 8,320 tokens), and among attention layers the smaller page is doubled.
Layers with the same kind of page form a bucket; buckets are cut into groups of equal size, and one block of the pool
is one page in each layer of a group: ``bytes_per_block = group_size × page``. A request takes blocks in every group.
Functions of vLLM mirrored here: ``_align_hybrid_block_size``, ``unify_kv_cache_spec_page_size``,
``_get_kv_cache_groups_uniform_page_size``, ``max_memory_usage_bytes``. Exact on all logs of the test table.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import lcm

from lmtower.errors import PlanError
from lmtower.plan.formats import cdiv
from lmtower.plan.shape import Attention, ModelShape, State
from lmtower.plan.versions import Rules

ALIGNMENT = 16
"""Kernel block of FlashAttention and FlashInfer, and vLLM's own block size."""
_MLA_BLOCK = 64
_CHECKPOINT_ALIGNMENT = 64
"""FlashInfer's gated-delta-net prefill writes checkpoints at multiples of this (0.33)."""

_ELEMENT_BYTES = {
    "bf16": 2.0,
    "bfloat16": 2.0,
    "fp16": 2.0,
    "float16": 2.0,
    "half": 2.0,
    "fp8": 1.0,
    "fp8_e4m3": 1.0,
    "fp8_e5m2": 1.0,
    "fp8_inc": 1.0,
    "fp8_ds_mla": 1.0,
    "int8": 1.0,
    "fp32": 4.0,
    "float32": 4.0,
    "nvfp4": 0.5625,
}
KV_DTYPES = ("auto", *_ELEMENT_BYTES)


@dataclass(frozen=True, slots=True)
class KvOptions:
    """What changes the cache beside the model: flags and version."""

    rules: Rules
    dtype: str = "bf16"
    tensor_parallel: int = 1
    speculative_tokens: int = 0
    draft: bool = False
    """True when draft layers keep a cache of their own (MTP or an EAGLE-like head)."""
    mamba_cache_mode: str = "align"
    max_num_batched_tokens: int = 8192
    block_size: int = ALIGNMENT
    exports_checkpoints: bool = True
    """True on Hopper and Blackwell, where gated delta nets keep a prefill checkpoint since 0.33."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What one layer keeps. ``page_bytes`` is one page of ``block`` tokens; a state's page does not depend on it."""

    kind: str
    block: int
    page_bytes: int
    window: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that share block tables."""

    spec: Spec
    layers: int
    padding: int = 0
    block_bytes: int = 0
    """Bytes of one of its blocks where groups differ in that (DeepSeek V4); 0: all groups' blocks are equal."""


@dataclass(frozen=True, slots=True)
class KvLayout:
    """The cache's geometry. ``bytes_per_block`` over all groups' layers; everything else follows from it."""

    groups: tuple[Group, ...]
    bytes_per_block: int
    block_size: int
    options: KvOptions

    def blocks_per_request(self, length: int) -> int:
        """Blocks that a request of ``length`` tokens may hold at once, over all groups."""
        if not self.groups or not self.groups[0].block_bytes:
            return sum(self.group_blocks(group.spec, length) for group in self.groups)
        needed = sum(self.group_blocks(group.spec, length) * group.block_bytes for group in self.groups)
        return cdiv(needed, self.groups[0].block_bytes)

    def group_blocks(self, spec: Spec, length: int) -> int:
        """Blocks that a request takes in one group."""
        options = self.options
        if spec.kind == "state":
            return self._state_blocks(length)
        if spec.window is not None:
            in_flight = options.rules.in_flight_batches * options.max_num_batched_tokens
            return cdiv(min(spec.window - 1 + in_flight, length), spec.block) + 1
        return cdiv(length, spec.block)

    def _state_blocks(self, length: int) -> int:
        options = self.options
        if options.mamba_cache_mode == "all":
            return cdiv(length, self.block_size) + options.speculative_tokens
        if options.mamba_cache_mode == "align":
            checkpoint = options.rules.prefill_checkpoint and options.exports_checkpoints
            return 2 + options.speculative_tokens + checkpoint
        return 1 + options.speculative_tokens

    def bytes_per_request(self, length: int) -> int:
        """Memory that one request of ``length`` tokens needs."""
        return self.blocks_per_request(length) * self.bytes_per_block

    def blocks(self, pool_bytes: int) -> int:
        """Blocks in a pool. One of them is vLLM's null block; the log counts it, and so does this."""
        if self.bytes_per_block == 0:
            return 0
        return max(0, pool_bytes) // self.bytes_per_block

    def concurrency(self, blocks: int, length: int) -> float:
        """ "Maximum concurrency for ``length`` tokens per request"."""
        needed = self.blocks_per_request(length)
        return blocks / needed if needed else 0.0

    def tokens(self, blocks: int, length: int) -> int:
        """ "GPU KV cache size: N tokens", as the log of this version means it."""
        if not self.groups:
            return 0
        if self.options.rules.logs_blocks:
            smallest = [group.spec.block for group in self.groups if group.spec.kind != "state"] or [self.block_size]
            return blocks // len(self.groups) * min(smallest)
        return int(self.concurrency(blocks, length) * length)

    def longest(self, blocks: int, limit: int) -> int:
        """The longest request that fits into ``blocks``, at most ``limit`` tokens; 0 when none does."""
        if not self.groups:
            return limit
        low, high = 0, limit
        while low < high:
            middle = (low + high + 1) // 2
            if self.blocks_per_request(middle) <= blocks:
                low = middle
            else:
                high = middle - 1
        return low


def layout(shape: ModelShape, options: KvOptions) -> KvLayout:
    """The geometry of a model's cache. Raises PlanError when vLLM could not build it."""
    if options.dtype not in _ELEMENT_BYTES:
        raise PlanError(
            f"kv_cache_dtype: {options.dtype!r} is not known. Write one of {', '.join(KV_DTYPES)}",
            field="kv_cache_dtype",
        )
    specs = _specs(shape, options)
    if not specs:
        return KvLayout((), 0, 0, options)
    block_size = (max if shape.is_hybrid else min)(
        [spec.block for spec in specs if spec.kind != "state"] or [options.block_size]
    )
    kinds = {(spec.kind, spec.window) for spec in specs}
    if len(kinds) == 1:
        one = Spec(specs[0].kind, specs[0].block, sum(spec.page_bytes for spec in specs), specs[0].window)
        return KvLayout((Group(one, len(specs)),), one.page_bytes, block_size, options)
    groups, size = _groups(_unified(specs), options.rules)
    return KvLayout(groups, size * groups[0].spec.page_bytes, block_size, options)


def page_bytes_per_token(attention: Attention, options: KvOptions) -> int:
    """Bytes of one token in one layer: ``kv_heads × (head_k + head_v) × element``.

    KV heads are copied when there are fewer than ranks. nvfp4 keeps head_dim/2 + head_dim/16 bytes a vector
    (block 2848 of a Qwen3.8-27B log). MLA keeps one vector of
    ``kv_lora_rank + qk_rope_head_dim`` whatever the ranks; ``fp8_ds_mla`` packs it in 656 bytes.
    """
    if attention.latent is not None:
        width = attention.latent.kv_lora_rank + attention.latent.rope_dim
        if options.dtype == "nvfp4":
            raise PlanError(
                "kv_cache_dtype: 'nvfp4' is not possible with latent attention. Use fp8", field="kv_cache_dtype"
            )
        sparse = attention.latent.indexer_dim > 0
        if options.dtype == "fp8_ds_mla" or (sparse and options.dtype.startswith("fp8")):
            return 656
        return int(width * _ELEMENT_BYTES[options.dtype])
    heads = max(1, attention.kv_heads // options.tensor_parallel)
    if options.dtype == "nvfp4":
        return heads * sum(dim // 2 + dim // 16 for dim in (attention.head_dim, attention.value_dim))
    return int(heads * (attention.head_dim + attention.value_dim) * _ELEMENT_BYTES[options.dtype])


def state_page_bytes(state: State, options: KvOptions) -> int:
    """One state of one layer: ``heads × head_dim × state × element``, and ``(kernel − 1 + spec)`` convolution rows.

    Nemotron-3-Super: 128 × 64 × 128 × 4 + 3 × 10240 × 2 = 4,255,744 B.
    """
    tp = options.tensor_parallel
    groups = state.groups if state.groups % tp == 0 else tp
    channels = cdiv(state.conv_dim(groups if state.kind == "mamba2" else None), tp)
    temporal = cdiv(state.heads, tp) * state.head_dim * state.state_size * state.state_element_bytes
    return temporal + (state.conv_kernel - 1 + options.speculative_tokens) * channels * 2


def hybrid_block_size(shape: ModelShape, options: KvOptions) -> int:
    """Attention block of a hybrid: the smallest multiple of the alignment whose page holds one state.

    ``all`` also keeps to the scan's chunk. Super 8320 (fp8), Nano 4176 (fp8) and 2096 (bf16), Qwen3.6-35B 1056 (bf16).
    """
    state = shape.state
    attentions = [layer.attention for layer in shape.layers if layer.attention is not None and layer.attention.cached]
    if state is None or not attentions:
        return options.block_size
    token = page_bytes_per_token(attentions[0], options)
    page = state_page_bytes(state, options)
    step = options.block_size
    if attentions[0].latent is not None and options.rules.number >= (0, 27, 0):
        step = max(step, 128)
    if options.mamba_cache_mode == "all":
        step = lcm(state.chunk_size, step)
    elif options.mamba_cache_mode == "align" and _has_checkpoint_grid(state, options):
        step = lcm(step, _CHECKPOINT_ALIGNMENT)
    return step * cdiv(page, step * token)


def _has_checkpoint_grid(state: State, options: KvOptions) -> bool:
    return state.kind == "gdn" and options.rules.prefill_checkpoint and options.exports_checkpoints


def _specs(shape: ModelShape, options: KvOptions) -> list[Spec]:
    """What every layer of the target and of its draft keeps."""
    if shape.encoder:
        return []
    latent = any(layer.attention and layer.attention.latent for layer in shape.layers)
    block = (
        hybrid_block_size(shape, options) if shape.is_hybrid else max(options.block_size, _MLA_BLOCK if latent else 0)
    )
    specs = []
    for layer in shape.layers:
        if layer.attention is not None and layer.attention.cached:
            specs.extend(_attention_specs(layer.attention, block, options))
        if layer.state is not None:
            specs.append(_state_spec(layer.state, shape, block, options))
    if options.draft:
        specs.extend(_draft_specs(shape, block, options))
    return specs


def _attention_specs(attention: Attention, block: int, options: KvOptions) -> list[Spec]:
    specs = [Spec("attention", block, block * page_bytes_per_token(attention, options), attention.window)]
    if attention.latent is not None and attention.latent.indexer_dim:
        # vLLM keeps the indexer's keys in fp8 with one fp32 scale for each 128 values.
        width = attention.latent.indexer_dim
        specs.append(Spec("attention", block, block * (width + 4 * cdiv(width, 128)), None))
    return specs


def _state_spec(state: State, shape: ModelShape, block: int, options: KvOptions) -> Spec:
    page = state_page_bytes(state, options)
    attention = next((layer.attention for layer in shape.layers if layer.attention is not None), None)
    if attention is not None:
        page = max(page, block * page_bytes_per_token(attention, options))
    return Spec("state", block, page)


def _draft_specs(shape: ModelShape, block: int, options: KvOptions) -> list[Spec]:
    """The draft's attention joins the full-attention bucket (8 layers become 9). Without MTP layers: one, as EAGLE."""
    drafts = [layer.attention for layer in shape.draft_layers if layer.attention is not None]
    if not drafts:
        full = [
            layer.attention for layer in shape.layers if layer.attention is not None and layer.attention.window is None
        ]
        drafts = full[:1]
    return [spec for attention in drafts for spec in _attention_specs(attention, block, options)]


def _unified(specs: list[Spec]) -> list[Spec]:
    """Gives all pages one size: smaller pages get more tokens where that divides evenly, else padding."""
    largest = max(spec.page_bytes for spec in specs)
    unified = []
    for spec in specs:
        ratio = largest // spec.page_bytes if spec.kind == "attention" and largest % spec.page_bytes == 0 else 1
        unified.append(Spec(spec.kind, spec.block * ratio, largest, spec.window))
    return unified


def _groups(specs: list[Spec], rules: Rules) -> tuple[tuple[Group, ...], int]:
    """Buckets of equal specs, cut into groups of the smallest bucket's size, or the largest's when they are close."""
    buckets: dict[Spec, int] = defaultdict(int)
    for spec in specs:
        buckets[spec] += 1
    least, most = min(buckets.values()), max(buckets.values())
    size = most if most < least * rules.group_ratio else least
    groups: list[Group] = []
    for spec, count in buckets.items():
        number = cdiv(count, size)
        padding = number * size - count
        groups.extend(Group(spec, size, padding if index == number - 1 else 0) for index in range(number))
    return tuple(groups), size
