"""One engine, estimated before any context is chosen: weights, cache geometry and overhead under given flags."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lmtower.errors import PlanError
from lmtower.plan.gguf_shape import TokenCache, cache_dtypes, compute_bytes, token_cache
from lmtower.plan.kv import KvLayout, KvOptions, layout
from lmtower.plan.kv_compressed import compressed_layout, is_compressed
from lmtower.plan.model import ModelFiles
from lmtower.plan.overhead import Load, overhead
from lmtower.plan.quantisation import Layout, override, read_layout
from lmtower.plan.read_tensors import shape_of
from lmtower.plan.shape import ModelShape
from lmtower.plan.tensors import Build
from lmtower.plan.types import NodeFacts, Overhead
from lmtower.plan.versions import Rules, rules
from lmtower.plan.weights import Weights, weights_from_shape, weights_from_tensors, weights_from_total

_GIB = 1024**3
DEFAULT_BATCH_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Options:
    """Flags of one engine; None: derive it."""

    kv_cache_dtype: str = "auto"
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    speculative_tokens: int = 0
    tensor_parallel: int = 1
    prefix_caching: bool = True
    version: str | None = None
    mamba_cache_mode: str | None = None
    eager: bool = False
    quantization: str | None = None
    image_side: int | None = None
    text_only: bool = False
    """``--language-model-only``: a vision-language model without its tower."""
    correction_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a model needs whatever the context, and the cache that decides the rest. Bytes are per GPU."""

    files: ModelFiles
    options: Options
    weights: Weights
    cache: KvLayout | TokenCache
    overhead: Overhead
    kv_cache_dtype: str
    max_num_batched_tokens: int
    mamba_cache_mode: str | None
    trained_context: int
    rules: Rules
    shape: ModelShape | None = None
    layout: Layout | None = None

    @property
    def fixed_bytes(self) -> int:
        """Weights and overhead."""
        return self.weights.bytes + self.overhead.total_bytes

    @property
    def has_cache(self) -> bool:
        """False for encoders."""
        return self.cache.bytes_per_block > 0 and self.cache.blocks_per_request(1) > 0

    def pool_bytes(self, context: int, sequences: int) -> int:
        """Cache that ``sequences`` requests of ``context`` tokens need, with vLLM's null block; 1.1 requests at least.

        A pool about 1 % above one request hung with align and speculative decoding (field report).
        """
        if not self.has_cache:
            return 0
        one = self.cache.blocks_per_request(context)
        if isinstance(self.cache, TokenCache):
            return one * sequences
        return (max(sequences * one, -(-one * 11 // 10)) + 1) * self.cache.bytes_per_block


def estimate(files: ModelFiles, options: Options, facts: NodeFacts | None = None) -> Estimate:
    """Everything but the context. Raises PlanError naming the field at fault."""
    if files.gguf is not None:
        return _estimate_gguf(files, options, facts)
    if files.config is None:
        raise PlanError(f"{files.name}: config.json is missing", field="config.json")
    shape = shape_of(files)
    _check_parallel(shape, options)
    declared = override(read_layout(files.config, files.quant_file), options.quantization)
    version = rules(options.version)
    mode = mamba_mode(shape, options, version)
    batch = options.max_num_batched_tokens or _default_batch(facts)
    dtype = cache_dtype(options.kv_cache_dtype, declared)
    kv_options = KvOptions(
        rules=version,
        dtype=dtype,
        tensor_parallel=options.tensor_parallel,
        speculative_tokens=options.speculative_tokens,
        draft=options.speculative_tokens > 0,
        mamba_cache_mode=mode or "none",
        max_num_batched_tokens=batch,
        exports_checkpoints=facts is None or facts.capability == 0 or facts.capability >= 9.0,
    )
    cache = compressed_layout(shape, kv_options) if is_compressed(shape) else layout(shape, kv_options)
    load = Load(
        rules=version,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=batch,
        tensor_parallel=options.tensor_parallel,
        speculative_tokens=options.speculative_tokens,
        eager=options.eager,
        image_side=options.image_side,
        text_only=options.text_only,
    )
    weights = _weights(
        files,
        shape,
        Build(
            declared,
            options.tensor_parallel,
            draft=options.speculative_tokens > 0,
            whole_blocks=version.whole_blocks,
            text_only=options.text_only,
            max_num_batched_tokens=batch,
            expert_padding=expert_padding(version, facts),
        ),
    )
    extra = overhead(shape, declared, load, unified=facts.unified if facts else False)
    guess = int(weights.bytes * weights.uncertainty) if weights.uncertainty >= 0.02 else 0
    extra = replace(extra, margin_bytes=extra.margin_bytes + guess, correction_bytes=options.correction_bytes)
    return Estimate(
        files,
        options,
        weights,
        cache,
        extra,
        dtype,
        batch,
        mode,
        shape.max_position_embeddings,
        version,
        shape,
        declared,
    )


def _check_parallel(shape: ModelShape, options: Options) -> None:
    tp = options.tensor_parallel
    for layer in shape.layers:
        heads = layer.attention.heads if layer.attention else layer.state.heads if layer.state else tp
        if heads % tp:
            raise PlanError(f"tensor_parallel: {tp} GPUs do not divide {heads} heads", field="tensor_parallel")


def _default_batch(facts: NodeFacts | None) -> int:
    return facts.default_batch_tokens if facts is not None else DEFAULT_BATCH_TOKENS


def mamba_mode(shape: ModelShape, options: Options, version: Rules) -> str | None:
    """``--mamba-cache-mode``: none without prefix caching, else ``align``, which costs two states a request.

    vLLM's own choice on Nemotron is ``all``: a state for every block, a fifth of the concurrency.
    """
    if not shape.is_hybrid:
        return None
    if not options.prefix_caching:
        return "none"
    if options.mamba_cache_mode is None:
        return "align"
    if options.mamba_cache_mode not in ("none", "align", "all"):
        raise PlanError(
            f"mamba_cache_mode: {options.mamba_cache_mode!r} is not none, align or all", field="mamba_cache_mode"
        )
    if options.mamba_cache_mode == "all" and not version.has_mode_all:
        raise PlanError(
            f"mamba_cache_mode: 'all' was removed in vLLM 0.33, this is {version.version}. Use align",
            field="mamba_cache_mode",
        )
    return options.mamba_cache_mode


def cache_dtype(flag: str, declared: Layout) -> str:
    """``auto`` follows the checkpoint's KV declaration, else it is 16 bit."""
    if flag == "auto":
        return declared.kv_cache_dtype or "bf16"
    return flag


def expert_padding(version: Rules, facts: NodeFacts | None) -> tuple[int, int]:
    """MXFP4 experts are padded to what the kernel in use wants: (hidden, intermediate) multiples.

    gpt-oss-120b: 65.97 GiB (0.10.1, Marlin: 256 and 128), 64.38 (0.14.1); Triton on Hopper keeps 64 since (0.25.1).
    Marlin is what chips other than Hopper and B200 run; TRT-LLM on B200 pads both to 256.
    """
    capability = facts.capability if facts is not None else 0.0
    if 10.0 <= capability < 11.0:
        return 256, 256
    if version.number < (0, 13, 0) or (capability and capability != 9.0):
        return 256, 128
    if version.number < (0, 20, 0):
        return 256, 64
    return 64, 64


def _weights(files: ModelFiles, shape: ModelShape, build: Build) -> Weights:
    """Headers first; then the declared layout; the index's total where the layout is not declared or not known."""
    if files.tensors:
        return weights_from_tensors(files.tensors, shape, build)
    if files.total_size and (not shape.known or not build.layout.declared):
        return weights_from_total(files.total_size, shape, build)
    return weights_from_shape(shape, build)


def _estimate_gguf(files: ModelFiles, options: Options, facts: NodeFacts | None) -> Estimate:
    model = files.gguf
    assert model is not None
    if options.kv_cache_dtype not in cache_dtypes():
        raise PlanError(
            f"kv_cache_dtype: {options.kv_cache_dtype!r} is not known to llama.cpp. Write one of "
            f"{', '.join(cache_dtypes())}",
            field="kv_cache_dtype",
        )
    tp = options.tensor_parallel
    gpu = facts is not None and bool(facts.hardware)
    extra = Overhead(
        activation_bytes=compute_bytes(model, gpu=gpu),
        margin_bytes=_GIB // 4 if gpu else 0,
        correction_bytes=options.correction_bytes,
    )
    active = model.active_bytes or model.file_bytes
    weights = Weights(model.file_bytes // tp, active // tp, {"file": model.file_bytes // tp}, "GGUF tensors")
    return Estimate(
        files=files,
        options=options,
        weights=weights,
        cache=token_cache(model, options.kv_cache_dtype),
        overhead=extra,
        kv_cache_dtype="f16" if options.kv_cache_dtype == "auto" else options.kv_cache_dtype,
        max_num_batched_tokens=options.max_num_batched_tokens or 2048,
        mamba_cache_mode=None,
        trained_context=model.context_length,
        rules=rules(None),
    )
