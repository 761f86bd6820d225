"""The KV cache of DeepSeek V4: keys compressed 4 or 128 times, a window of plain ones, and compressors' states.

Theory of operation. Each layer keeps the last ``window`` tokens as they are (blocks of 64). Layers with a ratio keep
one vector for every 4 or 128 tokens besides (blocks of 256), those with 4 an index of them too, and what a compressor
has not folded yet (fp32, blocks of 4 or 8). Pages have few sizes; smaller ones are padded to the next size of the first
group. Layers of one kind of block form a group, cut so that all have about as many pages of one size, and a block of
the pool is one page in every slot: ``bytes_per_block = Σ page × slots``. A request is counted in blocks of the first
group: ``ceil(Σ blocks × bytes of a group's block / bytes of the first group's block)``.
Mirrors ``_get_kv_cache_groups_uniform_groups`` and ``get_max_concurrency_for_kv_cache_config`` of vLLM 0.25.1, and
reproduces DeepSeek-V4-Flash on two H200 (32.08 GiB, 262,144 tokens): 8.30 requests, 2,175,276 tokens.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from lmtower.plan.formats import cdiv
from lmtower.plan.kv import Group, KvLayout, KvOptions, Spec
from lmtower.plan.shape import Compressed, ModelShape

_BLOCK = 256
_WINDOW_BLOCK = 64
_STATE_BLOCKS = {4: 4, 128: 8}
_PACKED = 584
"""fp8_ds_mla: 448 B of fp8, 128 B of rotary bf16 and 8 B of scales a token."""


def is_compressed(shape: ModelShape) -> bool:
    """True when some layer compresses its keys."""
    return any(layer.attention is not None and layer.attention.compressed is not None for layer in shape.layers)


def compressed_layout(shape: ModelShape, options: KvOptions) -> KvLayout:
    """The geometry of such a cache. It does not depend on tensor parallelism: there is one key head."""
    full, windows = _pages(shape, options)
    sizes = sorted(set(full))
    counts = {
        kind: Counter(min(size for size in sizes if size >= page) for page in pages) for kind, pages in windows.items()
    }
    tuples = [max(Counter(full).values()), *(max(found.values()) for found in counts.values())]
    most = _slots(tuples)
    groups, slots = [_group(_BLOCK, None, Counter(full))], Counter(full)
    for (block, window), found in counts.items():
        number = cdiv(max(found.values()), most)
        for index in range(number):
            share = Counter({page: len(range(index, count, number)) for page, count in found.items()})
            groups.append(_group(block, window, share))
            slots |= share
    per_block = sum(page * count for page, count in slots.items())
    return KvLayout(tuple(groups), per_block, _BLOCK, options)


def _group(block: int, window: int | None, pages: Counter[int]) -> Group:
    size = sum(page * count for page, count in pages.items())
    return Group(Spec("attention", block, size, window), sum(pages.values()), block_bytes=size)


def _pages(shape: ModelShape, options: KvOptions) -> tuple[list[int], dict[tuple[int, int], list[int]]]:
    """Page sizes of the compressed keys, and of windows and compressor states by (block, window)."""
    full: list[int] = []
    windows: dict[tuple[int, int], list[int]] = defaultdict(list)
    layers = (*shape.layers, *(shape.draft_layers if options.draft else ()))
    for attention in (layer.attention for layer in layers if layer.attention is not None):
        kind = attention.compressed
        assert kind is not None
        windows[(_WINDOW_BLOCK, kind.window)].append(_keys(_WINDOW_BLOCK, attention.head_dim, options))
        if kind.ratio <= 1:
            continue
        full.append(_keys(_BLOCK // kind.ratio, attention.head_dim, options))
        windows[_state(kind)].append(_state_page(kind, attention.head_dim, options))
        if kind.indexer_dim:
            index = kind.indexer_dim + 4 * (kind.indexer_dim // 128)
            full.append(_aligned(_BLOCK // kind.ratio * index, options))
            windows[_state(kind)].append(_state_page(kind, kind.indexer_dim, options))
    return full, windows


def _keys(tokens: int, head_dim: int, options: KvOptions) -> int:
    return _aligned(tokens * (_PACKED if _is_packed(options) else 2 * head_dim), options)


def _state(kind: Compressed) -> tuple[int, int]:
    return _STATE_BLOCKS.get(kind.ratio, 8), kind.overlap * kind.ratio


def _state_page(kind: Compressed, width: int, options: KvOptions) -> int:
    """Key and score of each token that waits to be folded, in fp32."""
    return _aligned(_state(kind)[0] * 2 * kind.overlap * width * 4, options)


def _aligned(size: int, options: KvOptions) -> int:
    step = 576 if _is_packed(options) else 512
    return cdiv(size, step) * step


def _is_packed(options: KvOptions) -> bool:
    return options.dtype.startswith("fp8")


def _slots(tuples: list[int]) -> int:
    """Pages of one size that each group is padded to: the least padding in sum, of equals the largest."""
    return min(range(tuples[0], max(tuples) + 1), key=lambda size: (sum(-count % size for count in tuples), -size))
