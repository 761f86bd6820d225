"""The head of a GGUF file: metadata and tensor sizes, without the tensors. Format: ggml's docs/gguf.md, v2 and v3.

``gguf.GGUFReader`` builds an object for every token of the vocabulary (5 s for 49k tokens); planning needs none of
them, so long arrays are stepped over. Sizes of the quantisation types come from the ``gguf`` package.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from lmtower.errors import PlanError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_KEPT_ITEMS = 4096
"""Arrays up to this length are kept (one number a layer); longer ones are vocabularies."""
_MOST = 2**26


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: dimensions as stored, bytes on disk."""

    name: str
    shape: tuple[int, ...]
    n_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHead:
    """What the head of a file says."""

    values: dict[str, Any] = field(default_factory=dict)
    tensors: tuple[GgufTensor, ...] = ()


def read_head(path: Path) -> GgufHead:
    """The head of one file. Raises PlanError when it is not a readable GGUF."""
    try:
        with path.open("rb") as file:
            return _Reader(file).head()
    except (OSError, struct.error, UnicodeDecodeError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise PlanError(f"{path.name}: not a readable GGUF file ({error})", field="model") from error


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def head(self) -> GgufHead:
        if self._file.read(4) != b"GGUF":
            raise ValueError("it does not start with GGUF")
        version = self._scalar("<I")
        if version not in (2, 3):
            raise ValueError(f"version {version}")
        tensors, values = self._count(), self._count()
        found = {}
        for _ in range(values):
            name = self._string()
            found[name] = self._value(self._scalar("<I"))
        return GgufHead(found, tuple(self._tensor() for _ in range(tensors)))

    def _scalar(self, form: str) -> Any:
        return struct.unpack(form, self._file.read(struct.calcsize(form)))[0]

    def _count(self) -> int:
        count = int(self._scalar("<Q"))
        if count > _MOST:
            raise ValueError(f"{count} entries")
        return count

    def _string(self) -> str:
        return self._file.read(self._count()).decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        return self._scalar(_SCALARS[kind])

    def _array(self) -> list[Any] | None:
        kind, count = self._scalar("<I"), self._count()
        if kind in _SCALARS and count > _KEPT_ITEMS:
            self._file.seek(count * struct.calcsize(_SCALARS[kind]), 1)
            return None
        if kind == _STRING and count > _KEPT_ITEMS:
            for _ in range(count):
                self._file.seek(self._count(), 1)
            return None
        return [self._value(kind) for _ in range(count)]

    def _tensor(self) -> GgufTensor:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self._string()
        dims = tuple(int(self._scalar("<Q")) for _ in range(self._scalar("<I")))
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(self._scalar("<I"))]
        self._scalar("<Q")
        elements = 1
        for dim in dims:
            elements *= dim
        return GgufTensor(name, dims, elements // block * size)
