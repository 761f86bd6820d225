"""Bytes of a loaded model: from its shape and declared layout, or from the sizes of the checkpoint's own tensors.

Logs reproduced (vLLM's "Model loading took X GiB"): Qwen3-8B bf16 15.268, Qwen2.5-7B 14.25, Llama-3.1-8B 14.99,
Gemma-4-26B 48.5, Qwen3.6-35B-A3B-NVFP4 with MTP 21.93, Qwen3.6-27B-NVFP4 20.57, Nemotron-3-Super 68.1 (H200).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lmtower.plan.quantisation import strip
from lmtower.plan.shape import ModelShape
from lmtower.plan.tensors import Build, Tensor, buffers, tensors

_MIB = 1024**2
_LARGE = 10 * _MIB
_STEP = 2 * _MIB
_SPLIT = _MIB
_UNSPLIT = 20 * _MIB

UNDECLARED = 0.03
"""Uncertainty of weights whose layout is guessed from a stub: the public 120B is 2 % above the guess."""
UNKNOWN = 0.10
"""Uncertainty of weights of an architecture that is not known here."""
INDEXED = 0.01
"""Uncertainty of a checkpoint's total size: what is not loaded, and the allocator's rounding, are estimated."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Loaded bytes a rank, and what one decoded token reads of them."""

    bytes: int
    active_bytes: int
    parts: Mapping[str, int]
    basis: str
    """Where the number comes from, in words."""
    uncertainty: float = 0.0


@dataclass(frozen=True, slots=True)
class CheckpointTensor:
    """One tensor of a safetensors file, from its header."""

    name: str
    bytes: int
    shape: tuple[int, ...] = ()
    dtype: str = ""


def allocated(size: int, *, whole_blocks: bool = True) -> int:
    """Bytes that PyTorch's allocator counts for a tensor.

    From 10 MiB on it takes whole 2 MiB. What stays over goes back to the pool where it is more than 1 MiB
    (``should_split``), but not from blocks over 20 MiB while vLLM 0.21 or later loads (``max_split_size_mb:20``).
    Qwen2.5-0.5B 0.928 GiB, Coder-1.5B 2.976 (H100, 0.25.1); Qwen2.5-7B 14.25 (0.18.0) and 14.29 (0.25.1).
    """
    if size < _LARGE:
        return size
    rounded = -(-size // _STEP) * _STEP
    splits = rounded - size > _SPLIT and not (whole_blocks and rounded > _UNSPLIT)
    return size if splits else rounded


def weights_from_shape(shape: ModelShape, build: Build) -> Weights:
    """Sum over the engine's fused tensors. 0.25 % from the logs where the layout is declared."""
    parts: dict[str, int] = defaultdict(int)
    active = 0.0
    for tensor in tensors(shape, build):
        size = allocated(tensor.bytes, whole_blocks=build.whole_blocks)
        parts[tensor.part] += size
        active += _read(tensor)
    active += parts["embedding"] if shape.tied_embeddings and not shape.encoder else 0
    layout = build.layout
    basis = f"shape, {layout.method} layout" if layout.is_quantised else "shape, 16 bit"
    uncertainty = 0.0 if layout.declared else UNDECLARED
    return Weights(sum(parts.values()), int(active), dict(parts), basis, uncertainty)


def _read(tensor: Tensor) -> float:
    return 0.0 if tensor.part == "draft" else tensor.bytes * tensor.active


_FUSED = (
    (re.compile(r"\.(?:q_proj|k_proj|v_proj)\."), ".qkv_proj."),
    (re.compile(r"\.(?:gate_proj|up_proj|w1|w3)\."), ".gate_up_proj."),
    (re.compile(r"\.(?:in_proj_qkv|in_proj_z)\."), ".in_proj_qkvz."),
    (re.compile(r"\.(?:in_proj_b|in_proj_a)\."), ".in_proj_ba."),
    (re.compile(r"\.experts\.\d+\."), ".experts."),
)
_DRAFT = re.compile(r"^(?:mtp\.|model\.mtp\.|mtp_|.*\.mtp\.)")
_SKIPPED = re.compile(r"(?:rotary_emb\.inv_freq|\.k_scale|\.v_scale|\.input_scale|position_ids)$")


def weights_from_tensors(found: Iterable[CheckpointTensor], shape: ModelShape, build: Build) -> Weights:
    """Sum over the checkpoint's tensors, fused as the engine fuses them. Within 0.5 % of the logs.

    Draft layers count only with speculative decoding; a tied lm_head is stored once.
    """
    fused: dict[str, int] = defaultdict(int)
    draft = 0
    draft_from = len(shape.layers)
    for tensor in found:
        name = strip(tensor.name)
        if _SKIPPED.search(name) or (shape.tied_embeddings and name.startswith("lm_head")):
            continue
        drafts = bool(_DRAFT.match(tensor.name)) or _layer_of(name) >= draft_from
        if drafts and not build.draft:
            continue
        for pattern, replacement in _FUSED:
            name = pattern.sub(replacement, name)
        loaded = (
            tensor.bytes // 2
            if tensor.dtype == "F32" and ".experts" not in name and "scale" not in name
            else tensor.bytes
        )
        fused[name] += loaded
        draft += loaded * drafts
    total = sum(allocated(size, whole_blocks=build.whole_blocks) for size in fused.values())
    total += sum(allocated(buffer.bytes) for buffer in buffers(shape, build))
    modelled = weights_from_shape(shape, build)
    ratio = modelled.active_bytes / max(1, modelled.bytes)
    tp = build.tensor_parallel
    return Weights(
        total // tp,
        int(total // tp * ratio),
        {"checkpoint": (total - draft) // tp, "draft": draft // tp},
        "safetensors headers",
        0.0 if shape.known else UNKNOWN,
    )


def _layer_of(name: str) -> int:
    match = re.match(r"layers\.(\d+)\.", name)
    return int(match[1]) if match else -1


def weights_from_total(total: int, shape: ModelShape, build: Build) -> Weights:
    """From the total size alone (``metadata.total_size`` of the index): draft layers are taken off by their shape."""
    modelled = weights_from_shape(shape, Build(build.layout, 1, draft=True))
    draft = modelled.parts.get("draft", 0)
    loaded = max(0, total - (0 if build.draft else draft)) // build.tensor_parallel
    parts = {"checkpoint": loaded}
    if build.draft:
        parts = {"checkpoint": max(0, loaded - draft // build.tensor_parallel), "draft": draft // build.tensor_parallel}
    ratio = modelled.active_bytes / max(1, modelled.bytes)
    uncertainty = INDEXED if shape.known else UNKNOWN
    return Weights(loaded, int(loaded * ratio), parts, "size of the checkpoint", uncertainty)
