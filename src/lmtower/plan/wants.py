"""What the tower file asks of each engine, with recipe and defaults applied: the planner's own input.

Precedence as in the command line that is built later: derived < recipe's flags < ``args`` of the tower file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from lmtower.config.types import Engine, Tower
from lmtower.config.units import parse_count, parse_size
from lmtower.errors import PlanError
from lmtower.plan.estimate import Estimate, Options, cache_dtype, estimate
from lmtower.plan.model import ModelFiles
from lmtower.plan.quantisation import read_layout
from lmtower.plan.read_tensors import shape_of
from lmtower.plan.types import NodeFacts
from lmtower.plan.versions import DEFAULT_VERSION, in_range, of_image, rules
from lmtower.recipes import Recipe, find, get

LOCAL = "local"
"""Name of the node when the tower file has none."""


@dataclass(frozen=True, slots=True)
class Want:
    """One engine as asked for. ``context`` None: as trained, as far as it fits; ``max``: the largest that fits."""

    name: str
    engine: Engine
    runtime: Literal["vllm", "llamacpp"]
    nodes: tuple[str, ...]
    spans: bool
    """True: one copy over all its nodes; False: one copy on each."""
    recipe: Recipe
    version: str | None
    options: Options
    estimate: Estimate
    context: int | Literal["max"] | None
    sequences: int
    pool_bytes: int | None = None
    """Fixed by the tower file."""
    utilisation: float | None = None
    """Fixed by the tower file's ``args``."""

    @property
    def limit(self) -> int:
        """Longest context to consider when it is ours to choose."""
        trained = self.estimate.trained_context
        return trained if self.context in ("max", None) else int(self.context)

    @property
    def flexible(self) -> bool:
        """True when the context is ours to choose."""
        return self.context in ("max", None) and self.estimate.has_cache and self.pool_bytes is None


def runtime_of(engine: Engine) -> str:
    """``vllm``, ``llamacpp`` or ``external``, as written or as the model's name says."""
    if engine.runtime is not None:
        return engine.runtime
    if engine.url or engine.urls:
        return "external"
    name = engine.model.lower()
    return "llamacpp" if name.startswith("bundled:") or ".gguf" in name or "-gguf" in name else "vllm"


def node_names(name: str, engine: Engine, tower: Tower) -> tuple[str, ...]:
    """Nodes of an engine. Raises PlanError when it names none of several."""
    if engine.nodes:
        return engine.nodes
    if engine.node:
        return (engine.node,)
    if len(tower.nodes) > 1:
        raise PlanError(
            f"engines.{name}.node: missing, and there are several nodes ({', '.join(tower.nodes)})",
            field=f"engines.{name}.node",
        )
    return tuple(tower.nodes) or (LOCAL,)


def want(name: str, tower: Tower, files: ModelFiles, facts: Mapping[str, NodeFacts], correction_bytes: int = 0) -> Want:
    """One engine's wishes and its estimate. Raises PlanError with the engine's path in front."""
    engine = tower.engines[name]
    try:
        return _want(name, engine, tower, files, facts, correction_bytes)
    except PlanError as error:
        text = str(error)
        if text.startswith(f"engines.{name}"):
            raise
        raise PlanError(f"engines.{name} ({engine.model}): {text}", field=error.field) from error


def _want(
    name: str, engine: Engine, tower: Tower, files: ModelFiles, facts: Mapping[str, NodeFacts], correction_bytes: int
) -> Want:
    nodes = node_names(name, engine, tower)
    node = facts[nodes[0]]
    runtime: Literal["vllm", "llamacpp"] = "llamacpp" if runtime_of(engine) == "llamacpp" else "vllm"
    recipe = _recipe(engine, files)
    version = engine.version or of_image(engine.image) or recipe.version
    version = version or (DEFAULT_VERSION if runtime == "vllm" else None)
    flags = _flags(recipe, runtime, version, engine)
    context = _count(flags, "max-model-len", engine.context)
    sequences = _count(flags, "max-num-seqs", engine.sequences or None)
    options = Options(
        kv_cache_dtype=str(
            flags.get("kv-cache-dtype") or engine.kv_cache_dtype or _default_dtype(files, node, runtime)
        ),
        max_num_seqs=sequences or _default_sequences(files, node),
        max_num_batched_tokens=_count(flags, "max-num-batched-tokens", engine.batch_tokens or None),
        speculative_tokens=engine.speculative_tokens,
        tensor_parallel=max(1, engine.tensor_parallel),
        prefix_caching=engine.prefix_caching,
        version=version,
        mamba_cache_mode=flags.get("mamba-cache-mode"),
        eager=bool(flags.get("enforce-eager")),
        quantization=flags.get("quantization") or engine.quantization,
        image_side=_image_side(name, tower),
        text_only=bool(flags.get("language-model-only")),
        correction_bytes=correction_bytes,
    )
    options = _with_batch(files, options, node, context)
    pinned = flags.get("kv-cache-memory-bytes", flags.get("kv-cache-memory", engine.kv_cache_memory))
    utilisation = flags.get("gpu-memory-utilization")
    return Want(
        name=name,
        engine=engine,
        runtime=runtime,
        nodes=nodes,
        spans=len(nodes) > 1 and options.tensor_parallel > max(facts[each].gpus for each in nodes),
        recipe=recipe,
        version=version,
        options=options,
        estimate=estimate(files, options, node),
        context=context if context is None or context == "max" else int(context),
        sequences=options.max_num_seqs,
        pool_bytes=_size(name, pinned),
        utilisation=float(utilisation) if isinstance(utilisation, int | float) else None,
    )


def _recipe(engine: Engine, files: ModelFiles) -> Recipe:
    if engine.recipe is not None:
        try:
            return get(engine.recipe)
        except KeyError as error:
            raise PlanError(f"recipe: {engine.recipe!r} is not known", field="recipe") from error
    architectures = files.config.get("architectures") if files.config else None
    return find(engine.model, tuple(architectures) if isinstance(architectures, list) else ())


def _flags(recipe: Recipe, runtime: str, version: str | None, engine: Engine) -> dict[str, Any]:
    flags: dict[str, Any] = {}
    for part in recipe.engine:
        if part.runtime == runtime and (not part.versions or in_range(rules(version), part.versions)):
            flags |= part.flags
    return flags | {key.lstrip("-").replace("_", "-"): value for key, value in engine.args.items()}


def _count(flags: Mapping[str, Any], key: str, written: Any) -> Any:
    value = flags.get(key, written)
    if value is None or value == "max":
        return value
    try:
        count = int(parse_count(value))
    except ValueError as error:
        raise PlanError(f"args.{key}: {error}", field=f"args.{key}") from error
    if count < 1:
        raise PlanError(f"{key}: {value!r} is not above 0", field=key)
    return count


def _size(name: str, value: Any) -> int | None:
    if value is None:
        return None
    try:
        return int(parse_size(value))
    except ValueError as error:
        raise PlanError(f"engines.{name}.kv_cache_memory: {error}", field=f"engines.{name}.kv_cache_memory") from error


def _default_dtype(files: ModelFiles, node: NodeFacts, runtime: str) -> str:
    """fp8 on unified memory, where the cache competes with everything else; else what the checkpoint asks for.

    Not for models with biased keys (Qwen2.5): their outliers do not survive 8 bits.
    """
    if runtime != "vllm" or files.config is None or not node.unified or "fp8" not in node.supports:
        return "auto"
    declared = read_layout(files.config, files.quant_file)
    if cache_dtype("auto", declared) != "bf16":
        return "auto"
    shape = shape_of(files)
    attentions = [layer.attention for layer in shape.layers if layer.attention is not None]
    if shape.encoder or any(attention.bias or attention.latent for attention in attentions):
        return "auto"
    return "fp8"


def _default_sequences(files: ModelFiles, node: NodeFacts) -> int:
    """Enough to keep a box busy; encoders have no cache that would cost more."""
    if files.gguf is not None:
        return 1 if files.gguf.encoder else 4
    if files.config is not None and shape_of(files).encoder:
        return 32
    return 4 if node.unified else 16


def _with_batch(files: ModelFiles, options: Options, node: NodeFacts, context: int | str | None) -> Options:
    """The batch where vLLM's own default would refuse to start.

    ``align`` before 0.27 wants a whole block in a batch (8,320 tokens on the 120B); encoders want a whole input.
    """
    if options.max_num_batched_tokens is not None or files.config is None:
        return options
    drafted = estimate(files, replace(options, max_num_batched_tokens=node.default_batch_tokens), node)
    if drafted.shape is not None and drafted.shape.encoder:
        longest = context if isinstance(context, int) else drafted.trained_context
        return replace(options, max_num_batched_tokens=max(longest, node.default_batch_tokens))
    small = drafted.cache.block_size > node.default_batch_tokens
    if drafted.rules.align_needs_batch and drafted.mamba_cache_mode == "align" and small:
        return replace(options, max_num_batched_tokens=-(-drafted.cache.block_size // 16) * 16 + 80)
    return options


def _image_side(name: str, tower: Tower) -> int | None:
    """The longest image side that every persona of the engine allows; None when one of them has no limit."""
    sides = [persona.images.max_side for persona in tower.personas.values() if persona.engine == name]
    if not sides or any(side is None for side in sides):
        return None
    return max(side for side in sides if side is not None)
