"""GGUF metadata -> ``GgufModel``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmtower.errors import PlanError
from lmtower.plan.gguf_file import GgufHead, GgufTensor, read_head
from lmtower.plan.gguf_shape import GgufLayer, GgufModel

_ENCODERS = ("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "modern-bert")


def read_gguf(path: Path) -> GgufModel:
    """Shape and sizes of a GGUF file (the first of a split one counts all its parts). Raises PlanError."""
    try:
        import gguf  # noqa: F401 - sizes of the quantisation types
    except ImportError as error:
        raise PlanError("GGUF models need the 'gguf' extra: pip install 'lmtower[gguf]'", field="model") from error
    return _Metadata(read_head(path), path).model()


class _Metadata:
    """Typed access to a file's values, whose names start with the architecture."""

    def __init__(self, head: GgufHead, path: Path) -> None:
        self._head = head
        self._path = path
        self._architecture = str(self._value("general.architecture") or "")
        if not self._architecture:
            raise PlanError("general.architecture: missing from the GGUF metadata", field="general.architecture")

    def model(self) -> GgufModel:
        """Everything the planner needs."""
        hidden = self._whole("embedding_length")
        count = self._whole("block_count", most=2000)
        tensors = self._head.tensors
        return GgufModel(
            architecture=self._architecture,
            name=str(self._value("general.name") or self._path.name),
            file_bytes=self._parts_bytes(tensors),
            layers=tuple(self._layer(index, hidden) for index in range(count)),
            hidden_size=hidden,
            intermediate=max(self._list("feed_forward_length", 0, count)),
            vocab_size=self._vocab(tensors),
            context_length=self._whole("context_length"),
            active_bytes=self._active(tensors),
            encoder=self._architecture in _ENCODERS,
        )

    def _value(self, key: str) -> Any:
        return self._head.values.get(key)

    def _own(self, key: str) -> Any:
        return self._value(f"{self._architecture}.{key}")

    def _whole(self, key: str, default: int | None = None, most: int = 2**40) -> int:
        value = self._own(key)
        if value is None and default is not None:
            return default
        name = f"{self._architecture}.{key}"
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise PlanError(f"{name}: {value!r} in the GGUF metadata is not a number from 1 to {most}", field=name)
        return value

    def _list(self, key: str, default: int, count: int) -> Sequence[int]:
        value = self._own(key)
        if isinstance(value, list) and value:
            return [int(item) for item in value]
        return [int(value) if isinstance(value, int) else default] * max(1, count)

    def _layer(self, index: int, hidden: int) -> GgufLayer:
        heads = self._at("attention.head_count", index, 0)
        kv_heads = self._at("attention.head_count_kv", index, heads)
        interval = self._own("full_attention_interval")
        recurrent = (
            heads == 0 or kv_heads == 0 or (isinstance(interval, int) and interval > 0 and (index + 1) % interval != 0)
        )
        if recurrent and self._own("ssm.state_size") is not None:
            return GgufLayer(state_bytes=self._state_bytes())
        if kv_heads == 0 or heads == 0:
            return GgufLayer()
        dim = hidden // heads
        return GgufLayer(
            kv_heads=kv_heads,
            key_dim=self._whole("attention.key_length", dim),
            value_dim=self._whole("attention.value_length", dim),
            window=self._window(index),
        )

    def _at(self, key: str, index: int, default: int) -> int:
        value = self._own(key)
        if isinstance(value, list):
            return int(value[index]) if index < len(value) else default
        return int(value) if isinstance(value, int) else default

    def _window(self, index: int) -> int | None:
        window = self._own("attention.sliding_window")
        if not isinstance(window, int) or window <= 0:
            return None
        pattern = self._own("attention.sliding_window_pattern")
        if isinstance(pattern, list) and index < len(pattern):
            return window if pattern[index] else None
        every = (
            pattern
            if isinstance(pattern, int) and pattern > 0
            else {"gemma2": 2, "gpt-oss": 2, "gemma3": 6}.get(self._architecture, 0)
        )
        return window if every and (index + 1) % every else None

    def _state_bytes(self) -> int:
        inner, state = self._whole("ssm.inner_size"), self._whole("ssm.state_size")
        kernel, groups = self._whole("ssm.conv_kernel", 4), self._whole("ssm.group_count", 1)
        return 4 * (inner * state + (kernel - 1) * (inner + 2 * groups * state))

    def _vocab(self, tensors: Sequence[GgufTensor]) -> int:
        for tensor in tensors:
            if tensor.name == "token_embd.weight":
                return int(max(tensor.shape))
        return self._whole("vocab_size", 32000)

    def _active(self, tensors: Sequence[GgufTensor]) -> int:
        experts, used = self._own("expert_count") or 0, self._own("expert_used_count") or 0
        share = used / experts if experts else 1.0
        return sum(int(tensor.n_bytes * (share if "_exps" in tensor.name else 1.0)) for tensor in tensors)

    def _parts_bytes(self, tensors: Sequence[GgufTensor]) -> int:
        """All parts of a split model: ``name-00001-of-00003.gguf``."""
        stem, mark, rest = self._path.name.partition("-00001-of-")
        if mark:
            return sum(part.stat().st_size for part in self._path.parent.glob(f"{stem}-?????-of-{rest}"))
        return sum(int(tensor.n_bytes) for tensor in tensors)
