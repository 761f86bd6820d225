"""config.json as a ``ModelShape``. Every family is read from the fields that vLLM reads.

A model type that is not known here is refused, unless the sizes of its tensors are known: then it is read as
a plain decoder and marked ``known=False``, and the planner says how uncertain that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmtower.errors import PlanError
from lmtower.plan.fields import Fields
from lmtower.plan.read_layers import MAX_LAYERS, read_draft_layers, read_layers
from lmtower.plan.read_vision import read_vision
from lmtower.plan.shape import Attention, Layer, Mlp, ModelShape

DECODERS = frozenset(
    """
    llama mistral mistral3 ministral ministral3 mixtral qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next qwen3_5 qwen3_5_text
    qwen3_5_moe qwen3_5_moe_text qwen3_vl qwen3_vl_text qwen3_vl_moe qwen3_vl_moe_text qwen2_vl qwen2_vl_text
    qwen2_5_vl qwen2_5_vl_text gemma gemma2 gemma3 gemma3_text gemma4 gemma4_text gpt_oss nemotron nemotron_h
    nemotron-nas nemotron_nas deepseek deepseek_v2 deepseek_v3 deepseek_v32 kimi_k2 deepseek_v4
    glm glm4 glm4_moe glm_moe_dsa
    minimax_m2 phi phi3 granite granitemoe granitemoehybrid bamba starcoder2 smollm3 olmo2 olmo3 olmoe exaone4 seed_oss
    ernie4_5 ernie4_5_moe internlm2 internlm3 cohere cohere2 stablelm hunyuan_v1_dense hunyuan_v1_moe apertus arcee
    """.split()  # noqa: SIM905 - a table is easier to read
)
"""Decoder model types (``model_type`` of config.json) whose layers are read exactly."""

ENCODERS = frozenset(
    ("nomic_bert", "bert", "roberta", "xlm-roberta", "modernbert", "camembert", "distilbert", "electra", "new", "gte")
)
"""Encoders: bidirectional attention, no KV cache."""

_QK_NORM = ("qwen3", "gemma3", "gemma4", "olmo2", "olmo3", "exaone4", "glm4_moe", "minimax_m2")
_MULTIMODAL_ROPE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
"""Their rope tables have four times the trained positions (``MRotaryEmbedding``), with and without the tower."""
_ONE_ELEMENT_BYTES = {"float64": 2, "float32": 2, "bfloat16": 2, "float16": 2, "half": 2, "auto": 2}


def text_section(config: Mapping[str, Any]) -> Fields:
    """The language model's own fields: nested under ``text_config`` in vision-language models, else the top level."""
    if not isinstance(config, Mapping) or not config:
        raise PlanError("config.json: not a JSON object with fields", field="config.json")
    top = Fields(config)
    thinker = top.section("thinker_config")
    holder = thinker or top
    return holder.section("text_config", "llm_config", "language_config") or holder


def read_config(config: Mapping[str, Any], *, has_sizes: bool = False) -> ModelShape:
    """Config.json -> ModelShape.

    ``has_sizes``: the sizes of the checkpoint's tensors are known, so an unknown architecture may pass.
    Raises PlanError naming the field.
    """
    top = Fields(config if isinstance(config, Mapping) else {})
    text = text_section(config)
    architectures = top.words("architectures") or text.words("architectures") or ()
    model_type = text.text("model_type") or top.text("model_type")
    known = _known(model_type, architectures)
    if not model_type and not architectures:
        raise PlanError(
            "model_type: missing, and there is no 'architectures' either: this is no config.json of a model",
            field="model_type",
        )
    if not known and not has_sizes:
        raise PlanError(
            f"architectures: {', '.join(architectures) or model_type!r} ({model_type!r}) is not known; neither "
            "an index nor headers of safetensors are there to plan from. Point to the model's folder instead",
            field="architectures",
        )
    if _is_encoder(model_type, architectures):
        return _read_encoder(text, model_type, architectures)
    return _read_decoder(top, text, model_type, architectures, known)


def is_known(config: Mapping[str, Any]) -> bool:
    """True when layers of this architecture are read exactly."""
    top, text = Fields(config), text_section(config)
    architectures = top.words("architectures") or text.words("architectures") or ()
    return _known(text.text("model_type") or top.text("model_type"), architectures)


def _known(model_type: str, architectures: tuple[str, ...]) -> bool:
    if model_type in DECODERS or model_type in ENCODERS:
        return True
    if model_type:
        return False
    names = " ".join(architectures).lower()
    return any(
        word in names for word in ("llama", "qwen2", "qwen3", "mistral", "nomicbert", "gemma", "gptoss", "nemotronh")
    )


def _is_encoder(model_type: str, architectures: tuple[str, ...]) -> bool:
    return model_type in ENCODERS or any(name in ("NomicBertModel", "BertModel") for name in architectures)


def _read_decoder(
    top: Fields, text: Fields, model_type: str, architectures: tuple[str, ...], known: bool
) -> ModelShape:
    hidden = text.whole("hidden_size", "n_embd", "d_model", "dim", most=2**20)
    layers = read_layers(text, model_type, hidden)
    tied_default = model_type.startswith("gemma")
    tied = text.flag("tie_word_embeddings", top.flag("tie_word_embeddings", tied_default))
    return ModelShape(
        architecture=architectures[0] if architectures else model_type,
        model_type=model_type,
        hidden_size=hidden,
        vocab_size=text.whole("vocab_size", most=2**24),
        layers=layers,
        max_position_embeddings=_trained_length(text),
        tied_embeddings=tied,
        draft_layers=read_draft_layers(text, model_type, hidden, layers),
        vision=read_vision(top, model_type, hidden),
        rope_dims=_rope_dims(text, layers, model_type),
        rope_positions=_trained_length(text) * (4 if model_type.startswith(_MULTIMODAL_ROPE) else 1),
        qk_norm=model_type.startswith(_QK_NORM),
        known=known,
        per_layer_embedding=text.whole("hidden_size_per_layer_input", default=0, least=0, most=2**16),
    )


def _trained_length(text: Fields) -> int:
    """Tokens that the model was trained for: ``max_position_embeddings``, stretched by YaRN where it says so."""
    keys = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length")
    length = text.whole(*keys, default=0, least=1)
    scaling = text.section("rope_scaling", "rope_parameters")
    if scaling is not None and (scaling.text("rope_type", "type") == "yarn"):
        original = scaling.whole("original_max_position_embeddings", default=0, least=0)
        stretched = int(original * scaling.number("factor", 1.0))
        length = max(length, stretched)
    if length == 0:
        raise PlanError(
            f"{text.name(keys[0])}: missing, and the model cannot be planned without it", field=text.name(keys[0])
        )
    return length


def _rope_dims(text: Fields, layers: tuple[Layer, ...], model_type: str) -> tuple[int, ...]:
    """One rope table for each different (rotary dimension, kind of attention). Nemotron hybrids have none."""
    if model_type == "nemotron_h":
        return ()
    if model_type == "deepseek_v4":  # plain and compressed layers have a table each, in fp32
        return (2 * text.whole("qk_rope_head_dim", most=2**16),) * 2
    partial = text.number("partial_rotary_factor", 1.0)
    parameters = text.section("rope_parameters")
    dims: dict[tuple[bool, int], int] = {}
    for layer in layers:
        attention = layer.attention
        if attention is None:
            continue
        rotary = attention.latent.rope_dim if attention.latent else attention.head_dim
        factor = partial
        if parameters is not None and parameters.has("partial_rotary_factor"):
            factor = parameters.number("partial_rotary_factor", partial)
        dims[(attention.window is None, rotary)] = max(2, int(rotary * factor))
    return tuple(dims.values())


def _read_encoder(text: Fields, model_type: str, architectures: tuple[str, ...]) -> ModelShape:
    """BERT-like models. nomic uses GPT-2's names (``n_embd``, ``n_layer``, ``n_head``, ``n_inner``) and a gated MLP."""
    hidden = text.whole("hidden_size", "n_embd", "dim", most=2**20)
    heads = text.whole("num_attention_heads", "n_head", "n_heads", most=2**16)
    count = text.whole("num_hidden_layers", "n_layer", "n_layers", most=MAX_LAYERS)
    if hidden % heads:
        raise PlanError(
            f"{text.name('num_attention_heads')}: {heads} heads do not divide hidden_size {hidden}",
            field=text.name("num_attention_heads"),
        )
    nomic = model_type == "nomic_bert" or "NomicBertModel" in architectures
    bias = not nomic and model_type not in ("modernbert", "new", "gte")
    mlp = Mlp(
        intermediate=text.whole("intermediate_size", "n_inner", "hidden_dim", default=4 * hidden, most=2**24),
        gated=nomic or model_type in ("modernbert", "new", "gte"),
        bias=bias,
        experts=text.whole("num_experts", default=0, least=0, most=2**16),
        top_k=text.whole("moe_top_k", default=0, least=0, most=2**16),
    )
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        value_dim=hidden // heads,
        bias=bias,
        output_bias=bias,
        cached=False,
    )
    every = text.whole("moe_every_n_layers", default=0, least=0, most=2**16)
    dense = Mlp(mlp.intermediate, mlp.gated, mlp.bias)
    trained = text.whole("max_trained_positions", "max_position_embeddings", "n_positions", most=2**32)
    positions = text.whole("n_positions", default=trained)
    layers = tuple(
        Layer(f"layers.{index}", attention, None, (mlp if mlp.experts and every and index % every == 1 else dense,))
        for index in range(count)
    )
    return ModelShape(
        architecture=architectures[0] if architectures else model_type,
        model_type=model_type or "nomic_bert",
        hidden_size=hidden,
        vocab_size=text.whole("vocab_size", most=2**24),
        layers=layers,
        max_position_embeddings=min(trained, positions),
        tied_embeddings=True,
        rope_dims=(hidden // heads,) if nomic else (),
        rope_positions=min(trained, positions),
        encoder=True,
    )
