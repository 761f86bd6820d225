"""Number formats of weights: what a matrix of ``rows`` × ``columns`` costs in bytes, with its scales.

Each format gives the bytes of its tensors one by one (weights, scales, zero points), because the allocator rounds
each of them. Sources: the checkpoints' safetensors headers and vLLM's ``create_weights`` of each method.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmtower.errors import PlanError


def cdiv(a: int, b: int) -> int:
    """Integer division, rounded up."""
    return -(-a // b)


@dataclass(frozen=True, slots=True)
class Format:
    """``bits`` a weight; a scale of ``scale_bytes`` for each ``group`` of columns (0: a row) or each ``block``."""

    name: str
    bits: int
    group: int = 0
    scale_bytes: int = 0
    block: tuple[int, int] | None = None
    zero_bits: int = 0

    def tensors(self, rows: int, columns: int, copies: int = 1) -> tuple[int, ...]:
        """Bytes of each tensor of ``copies`` such matrices stored as one (the experts of a layer)."""
        weight = cdiv(rows * columns * self.bits, 8) * copies
        if self.block is not None:
            return weight, cdiv(rows, self.block[0]) * cdiv(columns, self.block[1]) * self.scale_bytes * copies
        if self.scale_bytes == 0:
            return (weight,)
        scales = rows * (cdiv(columns, self.group) if self.group else 1)
        zeros = cdiv(scales * self.zero_bits, 8) * copies
        return (
            (weight, scales * self.scale_bytes * copies, zeros)
            if zeros
            else (weight, scales * self.scale_bytes * copies)
        )

    def bytes(self, rows: int, columns: int, copies: int = 1) -> int:
        """Plain sum of the tensors."""
        return sum(self.tensors(rows, columns, copies))


BF16 = Format("bf16", 16)
FP32 = Format("fp32", 32)
FP8 = Format("fp8", 8)
"""One scale a tensor: nothing beside the weights."""
FP8_CHANNEL = Format("fp8 per channel", 8, scale_bytes=4)
NVFP4 = Format("nvfp4", 4, group=16, scale_bytes=1)
"""0.5 + 1/16 = 0.5625 B a weight (fp8 scales for groups of 16); checked against the Super's experts."""
MXFP4 = Format("mxfp4", 4, group=32, scale_bytes=1)
"""0.5 + 1/32 = 0.53125 B a weight."""
MXFP8 = Format("mxfp8", 8, group=32, scale_bytes=1)
INT8 = Format("int8", 8, scale_bytes=4)
NF4 = Format("nf4", 4, group=64, scale_bytes=4)


def fp8_block(rows: int, columns: int) -> Format:
    """FP8 with one fp32 scale for each block (DeepSeek, Qwen: 128 × 128). Raises PlanError for an empty block."""
    if rows < 1 or columns < 1:
        raise PlanError(
            f"quantization_config.weight_block_size: [{rows}, {columns}] is not a block",
            field="quantization_config.weight_block_size",
        )
    return Format(f"fp8 {rows}x{columns}", 8, scale_bytes=4, block=(rows, columns))


def integer(bits: int, group: int, zeros: bool) -> Format:
    """GPTQ and AWQ: fp16 scales for each group, and zero points where the method keeps them."""
    return Format(f"int{bits}", bits, group=max(group, 0), scale_bytes=2, zero_bits=bits if zeros else 0)
