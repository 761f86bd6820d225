"""The files of a model that planning reads, as values; ``sources`` finds them, everything else only looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmtower.plan.gguf_shape import GgufModel
from lmtower.plan.weights import CheckpointTensor


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """``config`` is config.json; the rest is None where the file is not there. A GGUF model has only ``gguf``."""

    name: str
    config: Mapping[str, Any] | None = None
    quant_file: Mapping[str, Any] | None = None
    tensors: tuple[CheckpointTensor, ...] | None = None
    total_size: int | None = None
    """Bytes of all safetensors files (``metadata.total_size`` of the index)."""
    gguf: GgufModel | None = None
    origin: str = ""
    """Where it was found, in words: a folder, the Hugging Face cache, the hub, the bundled catalogue."""

    @property
    def has_sizes(self) -> bool:
        """True when the checkpoint's own sizes are known."""
        return bool(self.tensors) or bool(self.total_size)
