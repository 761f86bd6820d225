"""The shape of a model that nobody here knows, read off its tensors: what a plan needs when config.json does not help.

Layers are counted by their number in the names, widths are rows and columns of the embedding and of one layer's
projections. Where keys and values cannot be told apart from the rest, they are taken as wide as the hidden state, which
is the most that a decoder keeps. Everything of it is marked ``known=False``: the weights are sums of real sizes, the
cache is an upper bound, and the plan says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmtower.errors import PlanError
from lmtower.plan.fields import Fields
from lmtower.plan.model import ModelFiles
from lmtower.plan.read import is_known, read_config, text_section
from lmtower.plan.read_layers import MAX_LAYERS
from lmtower.plan.shape import Attention, Layer, Mlp, ModelShape
from lmtower.plan.weights import CheckpointTensor

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block|decoder_layers)\.(\d+)\.(.+)$")
_EMBEDDING = re.compile(r"(?:embed_tokens|tok_embeddings|word_embeddings|wte|embed_in|embeddings?|embed)\.weight$")
_KEYS = re.compile(r"(?:k_proj|wk|key|k)\.weight$")
_VALUES = re.compile(r"(?:v_proj|wv|value|v)\.weight$")
_UP = re.compile(r"(?:up_proj|gate_proj|gate_up_proj|w1|w3|fc1|c_fc|dense_h_to_4h)\.weight$")
_HEAD = re.compile(r"(?:lm_head|output|embed_out)\.weight$")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
_NO_POSITIONS = 8192
"""Trained length where config.json names none: long enough to be of use, short enough not to promise much."""


def shape_of(files: ModelFiles) -> ModelShape:
    """From config.json; for an architecture that is not known and lacks the usual fields, from the tensors."""
    assert files.config is not None
    try:
        return read_config(files.config, has_sizes=files.has_sizes)
    except PlanError:
        if not files.tensors or is_known(files.config):
            raise
    return shape_from_tensors(files.config, files.tensors)


def shape_from_tensors(config: Mapping[str, Any], tensors: Sequence[CheckpointTensor]) -> ModelShape:
    """Raises PlanError when the names tell neither an embedding nor layers."""
    embedding = max(_found(tensors, _EMBEDDING), key=lambda tensor: tensor.shape[0], default=None)
    numbered = [(int(match[1]), tensor) for tensor in tensors if (match := _LAYER.search(tensor.name))]
    if embedding is None or not numbered or max(number for number, _ in numbered) >= MAX_LAYERS:
        raise PlanError(
            "architectures: not known, and the names of its tensors show neither an embedding nor numbered layers, "
            "so its cache cannot be planned",
            field="architectures",
        )
    vocabulary, hidden = embedding.shape
    first = [tensor for number, tensor in numbered if number == numbered[0][0]]
    text = text_section(config)
    layer = Layer("layers.0", _attention(text, first, hidden), None, (Mlp(_rows(first, _UP, 4 * hidden)),))
    count = max(number for number, _ in numbered) + 1
    top = Fields(config)
    names = top.words("architectures") or text.words("architectures") or ("unknown",)
    length = text.whole(*_POSITIONS, default=_NO_POSITIONS)
    return ModelShape(
        architecture=names[0],
        model_type=text.text("model_type") or top.text("model_type"),
        hidden_size=hidden,
        vocab_size=vocabulary,
        layers=(layer,) * count,
        max_position_embeddings=length,
        tied_embeddings=not _found(tensors, _HEAD),
        known=False,
    )


def _attention(text: Fields, tensors: Sequence[CheckpointTensor], hidden: int) -> Attention:
    """One key and one value vector a token; how heads share them does not matter to its size."""
    keys, values = _rows(tensors, _KEYS, hidden), _rows(tensors, _VALUES, hidden)
    heads = text.whole("num_attention_heads", "n_head", "n_heads", "num_heads", default=1, most=2**16)
    return Attention(heads=heads, kv_heads=1, head_dim=keys, value_dim=values)


def _rows(tensors: Iterable[CheckpointTensor], pattern: re.Pattern[str], otherwise: int) -> int:
    return max((tensor.shape[0] for tensor in _found(tensors, pattern)), default=otherwise)


def _found(tensors: Iterable[CheckpointTensor], pattern: re.Pattern[str]) -> list[CheckpointTensor]:
    return [tensor for tensor in tensors if len(tensor.shape) == 2 and pattern.search(tensor.name)]
