"""The layers of a decoder, from config.json: which mix of attention, state and feed-forward each one is."""

from __future__ import annotations

from dataclasses import replace

from lmtower.errors import PlanError
from lmtower.plan.fields import Fields
from lmtower.plan.shape import Attention, Compressed, Latent, Layer, Mlp, State

MAX_LAYERS = 2000
"""No model has more; a larger number is a mistake."""

_PATTERN = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
_LINEAR = ("linear_attention", "gated_deltanet", "gdn")
_MAMBA = ("mamba", "mamba2")
_FULL = ("full_attention", "attention", "global_attention")
_SLIDING = ("sliding_attention", "local_attention")


def read_layers(text: Fields, model_type: str, hidden: int) -> tuple[Layer, ...]:
    """All decoder layers in order. Raises PlanError naming the field."""
    if model_type == "nemotron_h" or text.has("hybrid_override_pattern", "layers_block_type"):
        return _nemotron_layers(text, hidden)
    if text.has("block_configs"):
        return _nas_layers(text, hidden)
    count = text.whole("num_hidden_layers", "n_layer", "n_layers", "num_layers", most=MAX_LAYERS)
    kinds = _kinds(text, model_type, count)
    attentions = _Attentions(text, model_type, hidden)
    shared_from = count - text.whole("num_kv_shared_layers", default=0, least=0, most=count)
    state = _state(text, hidden) if any(kind in _LINEAR + _MAMBA for kind in kinds) else None
    layers = []
    for index, kind in enumerate(kinds):
        attention = None if kind in _LINEAR + _MAMBA else attentions.of(kind, index)
        if attention is not None and index >= shared_from:
            attention = replace(attention, cached=False)
        layers.append(
            Layer(
                name=f"layers.{index}",
                attention=attention,
                state=state if kind in _LINEAR + _MAMBA else None,
                mlps=_mlps(text, model_type, index, index >= shared_from),
            )
        )
    return tuple(layers)


def read_draft_layers(text: Fields, model_type: str, hidden: int, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Multi-token-prediction layers that the checkpoint brings along."""
    count = text.whole(
        "mtp_num_hidden_layers", "num_nextn_predict_layers", "num_mtp_modules", default=0, least=0, most=MAX_LAYERS
    )
    if count == 0:
        return ()
    if model_type == "nemotron_h":
        kinds = _words_or_pattern(text, "mtp_layers_block_type", "mtp_hybrid_override_pattern") or ("attention", "moe")
        return tuple(_nemotron_layer(text, hidden, kind, f"mtp.layers.{index}") for index, kind in enumerate(kinds))
    template = next(
        (layer for layer in reversed(layers) if layer.attention and layer.attention.window is None), layers[-1]
    )
    return tuple(replace(template, name=f"mtp.layers.{index}") for index in range(count))


def _kinds(text: Fields, model_type: str, count: int) -> tuple[str, ...]:
    listed = text.words("layer_types")
    if listed is not None:
        if len(listed) < count:
            raise PlanError(
                f"{text.name('layer_types')}: names {len(listed)} layers, num_hidden_layers says {count}",
                field=text.name("layer_types"),
            )
        known = _LINEAR + _MAMBA + _FULL + _SLIDING
        for kind in listed[:count]:
            if kind not in known:
                raise PlanError(
                    f"{text.name('layer_types')}: kind of layer {kind!r} is not known", field=text.name("layer_types")
                )
        return listed[:count]
    if text.has("linear_num_value_heads"):
        interval = text.whole("full_attention_interval", default=4, most=MAX_LAYERS)
        return tuple("full_attention" if (index + 1) % interval == 0 else "linear_attention" for index in range(count))
    if not _uses_window(text, model_type):
        return ("full_attention",) * count
    pattern = text.whole(
        "sliding_window_pattern",
        default={"gemma2": 2, "cohere2": 4}.get(model_type, 6 if "gemma" in model_type else 0),
        least=0,
    )
    if pattern:
        return tuple("full_attention" if (index + 1) % pattern == 0 else "sliding_attention" for index in range(count))
    return ("sliding_attention",) * count


def _uses_window(text: Fields, model_type: str) -> bool:
    if not text.has("sliding_window"):
        return False
    if model_type.startswith("qwen"):
        return text.flag("use_sliding_window")
    return text.flag("use_sliding_window", True)


class _Attentions:
    """Builds the attention of each kind once; dimensions are shared by all layers of a kind."""

    def __init__(self, text: Fields, model_type: str, hidden: int) -> None:
        self._text = text
        self._type = model_type
        self._hidden = hidden
        self._made: dict[str, Attention] = {}

    def of(self, kind: str, index: int) -> Attention:
        """The attention of a layer of that kind."""
        key = "sliding" if kind in _SLIDING else "full"
        if self._type == "deepseek_v4":
            return self._compressed(index)
        if key not in self._made:
            self._made[key] = self._sliding() if key == "sliding" else self._full()
        return self._made[key]

    def _plain(self) -> Attention:
        text = self._text
        heads = text.whole("num_attention_heads", "n_head", "n_heads", most=2**16)
        kv_heads = text.whole("num_key_value_heads", "n_head_kv", "num_kv_heads", default=heads, most=2**16)
        if heads % kv_heads:
            raise PlanError(
                f"{text.name('num_key_value_heads')}: {kv_heads} KV heads do not divide {heads} attention heads",
                field=text.name("num_key_value_heads"),
            )
        if not text.has("head_dim", "attention_head_dim") and self._hidden % heads:
            raise PlanError(
                f"{text.name('num_attention_heads')}: {heads} heads do not divide hidden_size {self._hidden}",
                field=text.name("num_attention_heads"),
            )
        head_dim = text.whole("head_dim", "attention_head_dim", default=self._hidden // heads, most=2**16)
        bias = text.flag(
            "attention_bias",
            text.flag(
                "qkv_bias",
                self._type in ("qwen2", "qwen2_moe", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"),
            ),
        )
        return Attention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=text.whole("v_head_dim", default=head_dim, most=2**16),
            gated=text.flag("attn_output_gate", self._type == "qwen3_next"),
            bias=bias,
            output_bias=bias and self._type in ("gpt_oss", "llama", "starcoder2", "phi"),
        )

    def _full(self) -> Attention:
        text = self._text
        if text.has("kv_lora_rank"):
            return self._latent()
        plain = self._plain()
        if not text.has("global_head_dim"):
            return plain
        head_dim = text.whole("global_head_dim", most=2**16)
        kv_heads = text.whole("num_global_key_value_heads", default=plain.kv_heads, most=2**16)
        return replace(plain, head_dim=head_dim, value_dim=head_dim, kv_heads=kv_heads)

    def _sliding(self) -> Attention:
        return replace(self._plain(), window=self._text.whole("sliding_window", most=2**31))

    def _compressed(self, index: int) -> Attention:
        """DeepSeek V4: ``compress_ratios`` names each layer's ratio; layers with 4 have an index over their keys."""
        text = self._text
        ratios = text.numbers("compress_ratios")
        ratio = ratios[index] if index < len(ratios) else 0
        if ratio not in (0, 1, 4, 128):
            raise PlanError(
                f"{text.name('compress_ratios')}: {ratio} is not 0, 4 or 128", field=text.name("compress_ratios")
            )
        head_dim = text.whole("head_dim", most=2**16)
        indexed = ratio == 4
        compressed = Compressed(
            ratio=ratio,
            window=text.whole("sliding_window", most=2**31),
            q_lora_rank=text.whole("q_lora_rank", most=2**20),
            o_lora_rank=text.whole("o_lora_rank", most=2**20),
            o_groups=text.whole("o_groups", default=1, most=2**16),
            streams=text.whole("hc_mult", default=1, most=256),
            indexer_heads=text.whole("index_n_heads", most=2**16) if indexed else 0,
            indexer_dim=text.whole("index_head_dim", most=2**16) if indexed else 0,
        )
        heads = text.whole("num_attention_heads", most=2**16)
        return Attention(heads=heads, kv_heads=1, head_dim=head_dim, value_dim=head_dim, compressed=compressed)

    def _latent(self) -> Attention:
        text = self._text
        heads = text.whole("num_attention_heads", most=2**16)
        nope = text.whole("qk_nope_head_dim", most=2**16)
        rope = text.whole("qk_rope_head_dim", most=2**16)
        latent = Latent(
            kv_lora_rank=text.whole("kv_lora_rank", most=2**20),
            rope_dim=rope,
            nope_dim=nope,
            q_lora_rank=text.whole("q_lora_rank", default=0, least=0, most=2**20),
            indexer_heads=text.whole("index_n_heads", default=0, least=0, most=2**16),
            indexer_dim=text.whole("index_head_dim", default=0, least=0, most=2**16),
        )
        return Attention(
            heads=heads, kv_heads=1, head_dim=nope + rope, value_dim=text.whole("v_head_dim", most=2**16), latent=latent
        )


def _state(text: Fields, hidden: int) -> State:
    if text.has("linear_num_value_heads"):
        key_dim = text.whole("linear_key_head_dim", most=2**16)
        return State(
            kind="gdn",
            heads=text.whole("linear_num_value_heads", most=2**16),
            head_dim=text.whole("linear_value_head_dim", most=2**16),
            state_size=key_dim,
            groups=text.whole("linear_num_key_heads", most=2**16),
            conv_kernel=text.whole("linear_conv_kernel_dim", default=4, most=256),
            chunk_size=64,
            state_element_bytes=_state_bytes(text.text("mamba_ssm_cache_dtype", "mamba_ssm_dtype", default="bfloat16")),
        )
    return _mamba_state(text, hidden)


def _mamba_state(text: Fields, hidden: int) -> State:
    heads = text.whole("mamba_num_heads", "mamba_n_heads", most=2**16)
    head_dim = text.whole(
        "mamba_head_dim",
        "mamba_d_head",
        default=max(1, text.whole("expand", "mamba_expand", default=2) * hidden // heads),
        most=2**16,
    )
    return State(
        kind="mamba2",
        heads=heads,
        head_dim=head_dim,
        state_size=text.whole("ssm_state_size", "mamba_d_state", "state_size", most=2**16),
        groups=text.whole("n_groups", "mamba_n_groups", default=1, most=2**16),
        conv_kernel=text.whole("conv_kernel", "mamba_d_conv", default=4, most=256),
        chunk_size=text.whole("chunk_size", "mamba_chunk_size", default=256, most=2**16),
        state_element_bytes=_state_bytes(text.text("mamba_ssm_cache_dtype", default="float32")),
    )


def _state_bytes(dtype: str) -> int:
    return 4 if dtype in ("float32", "fp32", "float") else 2


def _mlps(text: Fields, model_type: str, index: int, shares_cache: bool) -> tuple[Mlp, ...]:
    bias = text.flag("mlp_bias", model_type in ("gpt_oss", "starcoder2"))
    gated = text.text("hidden_act", "hidden_activation", default="silu") != "relu2" and model_type not in (
        "starcoder2",
        "phi",
        "nemotron",
    )
    if not _is_moe_layer(text, model_type, index):
        double = 2 if shares_cache and text.flag("use_double_wide_mlp") else 1
        return (Mlp(double * text.whole("intermediate_size", "n_inner", "ffn_dim", most=2**24), gated, bias),)
    experts = _experts(text, model_type, gated, bias)
    if text.flag("enable_moe_block"):
        return (Mlp(text.whole("intermediate_size", most=2**24), gated, bias), experts)
    return (experts,)


def _is_moe_layer(text: Fields, model_type: str, index: int) -> bool:
    if not text.has("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"):
        return False
    if (
        text.whole(
            "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", default=0, least=0, most=2**16
        )
        == 0
    ):
        return False
    listed = text.words("mlp_layer_types")
    if listed is not None and index < len(listed):
        return listed[index] == "sparse"
    if index < text.whole("first_k_dense_replace", default=0, least=0, most=MAX_LAYERS) or index in text.numbers(
        "mlp_only_layers"
    ):
        return False
    step = text.whole("decoder_sparse_step", "moe_layer_freq", default=1, most=MAX_LAYERS)
    return (index + 1) % step == 0 if text.has("decoder_sparse_step") else index % step == 0


def _experts(text: Fields, model_type: str, gated: bool, bias: bool) -> Mlp:
    intermediate = text.whole("moe_intermediate_size", "expert_intermediate_size", "intermediate_size", most=2**24)
    shared = text.whole(
        "moe_shared_expert_intermediate_size",
        "shared_expert_intermediate_size",
        "shared_intermediate_size",
        default=0,
        least=0,
    )
    if shared == 0:
        shared = intermediate * text.whole("n_shared_experts", "num_shared_experts", default=0, least=0, most=2**16)
    return Mlp(
        intermediate=intermediate,
        gated=gated,
        bias=bias,
        experts=text.whole("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", most=2**16),
        top_k=text.whole(
            "num_experts_per_tok", "experts_per_token", "top_k_experts", "moe_topk", "moe_k", default=1, most=2**16
        ),
        shared_intermediate=shared,
        shared_gate=text.has("shared_expert_intermediate_size") and model_type.startswith("qwen"),
        latent=text.whole("moe_latent_size", default=0, least=0, most=2**20),
    )


def _words_or_pattern(text: Fields, list_key: str, pattern_key: str) -> tuple[str, ...] | None:
    listed = text.words(list_key)
    if listed is not None:
        return listed
    pattern = text.text(pattern_key)
    for letter in pattern:
        if letter not in _PATTERN:
            raise PlanError(
                f"{text.name(pattern_key)}: letter {letter!r} is not one of M, E, * and -", field=text.name(pattern_key)
            )
    return tuple(_PATTERN[letter] for letter in pattern) or None


def _nemotron_layers(text: Fields, hidden: int) -> tuple[Layer, ...]:
    kinds = _words_or_pattern(text, "layers_block_type", "hybrid_override_pattern")
    if not kinds:
        raise PlanError(
            "hybrid_override_pattern: missing, so the order of the layers is not known",
            field=text.name("hybrid_override_pattern"),
        )
    count = text.whole("num_hidden_layers", default=len(kinds), most=MAX_LAYERS)
    if count != len(kinds):
        raise PlanError(
            f"{text.name('num_hidden_layers')}: {count}, but the layer pattern names {len(kinds)}",
            field=text.name("num_hidden_layers"),
        )
    return tuple(_nemotron_layer(text, hidden, kind, f"layers.{index}") for index, kind in enumerate(kinds))


def _nemotron_layer(text: Fields, hidden: int, kind: str, name: str) -> Layer:
    """One block of a Nemotron hybrid: each is a mixer *or* a feed-forward, never both."""
    gated = text.text("mlp_hidden_act", "hidden_act", default="relu2") != "relu2"
    if kind in _MAMBA:
        return Layer(name, state=_mamba_state(text, hidden))
    if kind == "attention":
        return Layer(name, attention=_Attentions(text, "nemotron_h", hidden).of("full_attention", 0))
    if kind == "moe":
        return Layer(name, mlps=(_experts(text, "nemotron_h", gated, bias=False),))
    if kind == "mlp":
        return Layer(name, mlps=(Mlp(text.whole("intermediate_size", most=2**24), gated),))
    raise PlanError(
        f"{text.name('layers_block_type')}: kind of layer {kind!r} is not known", field=text.name("layers_block_type")
    )


def _nas_layers(text: Fields, hidden: int) -> tuple[Layer, ...]:
    """Layers of a model shaped by neural architecture search (Nemotron NAS): each block lists its own widths."""
    blocks = text.values.get("block_configs")
    if not isinstance(blocks, list) or not 0 < len(blocks) <= MAX_LAYERS:
        raise PlanError(f"{text.name('block_configs')}: not a list of blocks", field=text.name("block_configs"))
    heads = text.whole("num_attention_heads", most=2**16)
    head_dim = text.whole("head_dim", default=max(1, hidden // heads), most=2**16)
    layers = []
    for index, values in enumerate(blocks):
        block = Fields(values if isinstance(values, dict) else {}, f"{text.where}block_configs[{index}].")
        attention_block, ffn = block.section("attention"), block.section("ffn")
        attention = None
        if (
            attention_block is not None
            and not attention_block.flag("no_op")
            and not attention_block.flag("replace_with_linear")
        ):
            kv_heads = heads // attention_block.whole("n_heads_in_group", default=1, most=heads)
            attention = Attention(heads, kv_heads, head_dim, head_dim)
        mlps: tuple[Mlp, ...] = ()
        if ffn is not None and not ffn.flag("no_op") and ffn.has("ffn_mult"):
            width = int(2 * ffn.number("ffn_mult", 1.0) * hidden / 3)
            mlps = (Mlp(-(-width // 256) * 256),)
        layers.append(Layer(f"layers.{index}", attention, None, mlps))
    return tuple(layers)
