"""vLLM: a planned engine -> its command line and environment, for the version that will run.

Order of precedence, lowest first: what the plan derives, what the recipe knows for this version, what the tower
file says under ``args``. Prefix caching is always written out, because vLLM leaves it off for hybrid models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmtower.config.types import Engine
from lmtower.engines.flags import Flags, merged, version_in
from lmtower.errors import PlanError
from lmtower.plan.types import EnginePlan
from lmtower.plan.versions import DEFAULT_VERSION, rules
from lmtower.recipes import Recipe

IMAGE = "vllm/vllm-openai:{tag}"

# vLLM's own limit of 4 stop strings is below what editors send for fill-in-the-middle.
_MAX_STOP_STRINGS = "64"
# GB10: FlashInfer's JIT without a cap started 22 nvcc at once and took 44 GiB in a minute.
_MAX_JOBS = "3"
_KV_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


def version_of(plan: EnginePlan, recipe: Recipe) -> str:
    """The version that will run: the tower file's, the recipe's, or ours."""
    return plan.version or recipe.version or DEFAULT_VERSION


def flags_of(plan: EnginePlan, engine: Engine, recipe: Recipe, *, host: str, cpu: bool) -> Flags:
    """Every flag of one engine, in the order they are written. Raises PlanError for a set that this version refuses."""
    version = version_of(plan, recipe)
    number = rules(version).number
    layers = [_derived(plan, version, host=host, cpu=cpu)]
    if plan.pooling:
        layers.append({"runner": "pooling", "convert": "embed"})
    layers += [part.flags for part in recipe.engine if part.runtime == "vllm" and version_in(number, part.versions)]
    if cpu:
        # The CPU build has no fused kernels of the backends that recipes name, and computes in float32 anywhere.
        layers.append({"moe-backend": None, "linear-backend": None, "attention-backend": None, "load-format": None})
    layers.append(engine.args)
    return merged(*layers)


def _derived(plan: EnginePlan, version: str, *, host: str, cpu: bool) -> Flags:
    flags: Flags = {
        "host": host,
        "port": plan.port,
        "served-model-name": plan.model,
        # an access line for every health check and scrape would bury what the engine has to say
        "uvicorn-log-level": "warning",
        "max-model-len": plan.max_model_len or None,
        "max-num-seqs": plan.max_num_seqs,
        "max-num-batched-tokens": plan.max_num_batched_tokens or None,
    }
    if cpu:
        flags |= {"dtype": "float32", "enforce-eager": True}
    else:
        flags["gpu-memory-utilization"] = plan.gpu_memory_utilization
    if plan.tensor_parallel > 1:
        flags["tensor-parallel-size"] = plan.tensor_parallel
    if plan.quantization:
        flags["quantization"] = plan.quantization
    if plan.pooling:
        return flags
    flags["kv-cache-memory-bytes"] = plan.kv_cache_memory_bytes
    if not cpu:
        # Written out even as "auto" would do: the checkpoint may declare fp8, and then "auto" takes it silently.
        flags["kv-cache-dtype"] = _KV_DTYPES.get(plan.kv_cache_dtype, plan.kv_cache_dtype)
    flags |= _prefix_caching(plan, version)
    flags["enable-prompt-tokens-details"] = True
    if plan.speculative_tokens:
        flags["speculative-config"] = {"method": "mtp", "num_speculative_tokens": plan.speculative_tokens}
    return flags


def _prefix_caching(plan: EnginePlan, version: str) -> Flags:
    if not plan.prefix_caching:
        return {"enable-prefix-caching": False}
    flags: Flags = {"enable-prefix-caching": True}
    known = rules(version)
    # 0.33 derives the mode from prefix caching: on means align.
    if plan.mamba_cache_mode and known.number < (0, 33, 0):
        flags["mamba-cache-mode"] = plan.mamba_cache_mode
    if plan.prefix_match_unit and known.has_match_unit:
        flags["prefix-match-unit"] = plan.prefix_match_unit
    too_small = plan.max_num_batched_tokens < plan.block_size
    if plan.mamba_cache_mode == "align" and too_small and known.align_needs_batch:
        raise PlanError(
            f"engines.{plan.name}.batch_tokens: vLLM {version} refuses aligned prefix caching with "
            f"{plan.max_num_batched_tokens} batched tokens under the block of {plan.block_size}; "
            f"write batch_tokens: {plan.block_size} or more",
            field="batch_tokens",
        )
    return flags


def environment(plan: EnginePlan, engine: Engine, recipe: Recipe, *, cpu: bool) -> Mapping[str, str]:
    """The engine's environment without secrets; the tower file's ``env`` wins."""
    version = version_of(plan, recipe)
    env: dict[str, str] = {
        "VLLM_MAX_STOP_STRINGS": _MAX_STOP_STRINGS,
        # an allowed image host must not send the engine on to a private address
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "MAX_JOBS": _MAX_JOBS,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    if cpu and plan.kv_cache_memory_bytes:
        env["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, -(-plan.kv_cache_memory_bytes // 1024**3)))
    for part in recipe.engine:
        if part.runtime == "vllm" and version_in(rules(version).number, part.versions):
            env |= part.env
    if engine.context == "max" or plan.max_model_len > plan.trained_context > 0:
        env["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
    return env | engine.env


def image_of(plan: EnginePlan, engine: Engine, recipe: Recipe) -> str:
    """Container image: the tower file's, the recipe's for this version, or vLLM's own release."""
    if engine.image:
        return engine.image
    version = version_of(plan, recipe)
    for part in reversed(recipe.engine):
        if part.runtime == "vllm" and part.image and version_in(rules(version).number, part.versions):
            return part.image
    return IMAGE.format(tag=f"v{version.removeprefix('v')}" if version[-1].isdigit() else version)


def command(plan: EnginePlan, flags: Mapping[str, Any], *, python: str | None) -> tuple[str, ...]:
    """The whole command: ``vllm serve`` in a container, or the API server's module under a Python of ours."""
    from lmtower.engines.flags import as_argv

    if python is None:
        return ("vllm", "serve", plan.model, *as_argv(flags))
    module = ("-m", "vllm.entrypoints.openai.api_server")
    return (python, *module, "--model", plan.model, *as_argv(flags))
