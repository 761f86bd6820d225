"""Which module of a checkpoint is stored in which format, from ``quantization_config`` or ``hf_quant_config.json``.

vLLM takes ``quantization_config`` of config.json and looks at hf_quant_config.json only when there is none
(``transformers_utils/config.py``); so do we. Module names differ by release (``model.language_model.layers.0…``,
``backbone.layers.0…``); both sides are compared without such prefixes.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmtower.errors import PlanError
from lmtower.plan.formats import (
    BF16,
    FP8,
    FP8_CHANNEL,
    INT8,
    MXFP4,
    MXFP8,
    NF4,
    NVFP4,
    Format,
    fp8_block,
    integer,
)

_PREFIX = re.compile(r"^(?:(?:model|language_model|backbone|transformer|text_model|llm)\.)+")
_INT_METHODS = ("gptq", "gptq_marlin", "awq", "awq_marlin", "auto-round", "auto_round", "autoround", "auto-gptq", "inc")


def strip(name: str) -> str:
    """A module's name without the prefixes that releases disagree about."""
    return _PREFIX.sub("", name)


@dataclass(frozen=True, slots=True)
class Layout:
    """Formats of a checkpoint's modules."""

    method: str = "none"
    default: Format = BF16
    """Format of Linear modules that are neither excluded nor listed."""
    listed: Mapping[str, Format] = field(default_factory=dict)
    """Format of modules named one by one; when not empty, the others stay bf16."""
    targets: tuple[tuple[re.Pattern[str], Format], ...] = ()
    excluded: re.Pattern[str] | None = None
    experts_only: bool = False
    kv_cache_dtype: str | None = None
    """KV cache dtype that the checkpoint asks for: what ``auto`` becomes."""
    declared: bool = True
    """False: the file names an algorithm but not its layers (a stub), or a method that is not known here."""
    stub: bool = False

    @property
    def is_quantised(self) -> bool:
        """True when any Linear may be other than 16 bit."""
        return self.default is not BF16 or bool(self.listed) or bool(self.targets)

    def of(self, names: Sequence[str], *, expert: bool = False) -> Format:
        """Format of the module that goes by any of ``names`` (already stripped)."""
        for name in names:
            if name in self.listed:
                return self.listed[name]
        if self.listed and not self.targets:
            return BF16
        if self.excluded is not None and any(self.excluded.match(name) for name in names):
            return BF16
        for pattern, form in self.targets:
            if any(pattern.match(name) for name in names):
                return form
        if self.experts_only and not expert:
            return BF16
        return self.default


def read_layout(config: Mapping[str, Any], quant_file: Mapping[str, Any] | None) -> Layout:
    """The layout of a checkpoint. Raises PlanError when the declaration has the wrong type."""
    declared = config.get("quantization_config")
    if declared is None:
        for key in ("text_config", "llm_config", "language_config"):
            nested = config.get(key)
            if isinstance(nested, Mapping) and nested.get("quantization_config") is not None:
                declared = nested["quantization_config"]
    if declared is None:
        declared = config.get("compression_config")
    if declared is None and quant_file is not None:
        declared = quant_file.get("quantization", quant_file)
    if declared is None:
        return Layout()
    if not isinstance(declared, Mapping):
        raise PlanError(
            f"quantization_config: {type(declared).__name__} where an object is expected", field="quantization_config"
        )
    return _layout(declared, config)


def override(layout: Layout, name: str | None) -> Layout:
    """The layout after ``--quantization NAME`` on a 16-bit checkpoint: fp8, mxfp8, int8 quantise while loading."""
    if not name or layout.is_quantised:
        return layout
    online = {"fp8": FP8, "mxfp8": MXFP8, "int8": INT8, "experts_int8": INT8, "bitsandbytes": NF4}
    if name.lower() not in online:
        return layout
    return Layout(
        name.lower(), online[name.lower()], excluded=_patterns(["lm_head"]), experts_only=name == "experts_int8"
    )


def _layout(quant: Mapping[str, Any], config: Mapping[str, Any]) -> Layout:
    method = str(quant.get("quant_method") or ("modelopt" if "quant_algo" in quant else "")).lower()
    excluded = _names(quant, "ignore", "exclude_modules", "modules_to_not_convert", "ignored_layers")
    if method.startswith("modelopt") or "quant_algo" in quant:
        return _modelopt(quant, excluded)
    if method in ("compressed-tensors", "compressed_tensors"):
        return _compressed(quant, excluded)
    if method == "fp8":
        block = quant.get("weight_block_size")
        form = (
            fp8_block(_whole(block, 0), _whole(block, 1))
            if block
            else FP8_CHANNEL
            if quant.get("weight_strategy") == "channel"
            else FP8
        )
        experts = str(config.get("expert_dtype", "")).lower()
        return Layout(method, form, targets=_expert_targets(experts), excluded=_patterns(["lm_head", *excluded]))
    if method in _INT_METHODS:
        form = integer(
            _bits(quant), _whole(quant.get("group_size", 128)), method.startswith("awq") or not quant.get("sym", True)
        )
        return Layout(method, form, excluded=_patterns(["lm_head", *excluded]))
    if method == "mxfp4":
        return Layout(method, MXFP4, excluded=_patterns(excluded), experts_only=True)
    if method == "bitsandbytes":
        return Layout(method, NF4 if quant.get("load_in_4bit") else INT8, excluded=_patterns(["lm_head", *excluded]))
    return Layout(method or "unknown", BF16, declared=False)


def _expert_targets(dtype: str) -> tuple[tuple[re.Pattern[str], Format], ...]:
    return ((re.compile(r".*\.experts\b"), MXFP4),) if dtype in ("fp4", "mxfp4") else ()


def _modelopt(quant: Mapping[str, Any], excluded: list[str]) -> Layout:
    algorithm = str(quant.get("quant_algo") or "").upper()
    cache = _cache_dtype(quant)
    listed = quant.get("quantized_layers")
    if isinstance(listed, Mapping) and listed:
        formats = {strip(str(name)): _modelopt_format(entry) for name, entry in listed.items()}
        return Layout("modelopt", BF16, listed=formats, kv_cache_dtype=cache)
    form = _modelopt_format({"quant_algo": algorithm, **quant})
    if excluded or "config_groups" in quant or "group_size" in quant:
        return Layout("modelopt", form, excluded=_patterns(excluded), kv_cache_dtype=cache)
    return Layout("modelopt", form, kv_cache_dtype=cache, declared=False, stub=True)


def _modelopt_format(entry: Any) -> Format:
    algorithm = str(entry.get("quant_algo", "") if isinstance(entry, Mapping) else "").upper()
    if "MXFP4" in algorithm:
        return MXFP4
    if "NVFP4" in algorithm or "FP4" in algorithm:
        return NVFP4
    if "MXFP8" in algorithm:
        return MXFP8
    if "FP8_PB" in algorithm or "BLOCK" in algorithm:
        return fp8_block(128, 128)
    if "FP8" in algorithm:
        return FP8_CHANNEL if "PER_CHANNEL" in algorithm else FP8
    if "W4A16" in algorithm or "INT4" in algorithm or "W4A8" in algorithm:
        return integer(4, 128, zeros=False)
    if "INT8" in algorithm or "W8A8" in algorithm:
        return INT8
    return BF16


def _compressed(quant: Mapping[str, Any], excluded: list[str]) -> Layout:
    groups = quant.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        return Layout("compressed-tensors", BF16, declared=False)
    default, targets = BF16, []
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            continue
        form = _compressed_format(weights, str(group.get("format") or quant.get("format") or ""))
        named = group.get("targets")
        for target in named if isinstance(named, list | tuple) and named else ["Linear"]:
            if target in ("Linear", "FusedMoE", "MoEGate"):
                default = form
            else:
                targets.append((_pattern(str(target)), form))
    return Layout(
        "compressed-tensors",
        default,
        targets=tuple(targets),
        excluded=_patterns(excluded),
        kv_cache_dtype=_cache_dtype(quant),
    )


def _compressed_format(weights: Mapping[str, Any], packing: str) -> Format:
    bits = _whole(weights.get("num_bits", 16))
    group = _whole(weights.get("group_size") or 0)
    if weights.get("type") == "float" and bits == 4:
        return MXFP4 if group == 32 or "mxfp4" in packing else NVFP4
    if weights.get("type") == "float" and bits == 8:
        strategy = weights.get("strategy")
        if strategy == "block":
            block = weights.get("block_structure") or [128, 128]
            return fp8_block(_whole(block, 0), _whole(block, 1))
        return MXFP8 if group == 32 else FP8_CHANNEL if strategy in ("channel", "token") else FP8
    if bits < 16:
        return integer(bits, group or 128, zeros=weights.get("symmetric") is False)
    return BF16


def _cache_dtype(quant: Mapping[str, Any]) -> str | None:
    """``auto`` follows the checkpoint's KV declaration (vLLM 0.25.1: ``get_kv_cache_quant_algo_string``)."""
    scheme = quant.get("kv_cache_scheme") or quant.get("kv_cache_quant_algo")
    if isinstance(scheme, Mapping):
        bits, kind = scheme.get("num_bits"), scheme.get("type")
        if kind != "float":
            return None
        return "fp8" if bits == 8 and scheme.get("dynamic") is not True else "nvfp4" if bits == 4 else None
    return {"fp8": "fp8", "nvfp4": "nvfp4"}.get(str(scheme).lower()) if scheme else None


def _names(quant: Mapping[str, Any], *keys: str) -> list[str]:
    for key in keys:
        value = quant.get(key)
        if value is None:
            continue
        if not isinstance(value, list | tuple):
            raise PlanError(
                f"quantization_config.{key}: not a list of module names", field=f"quantization_config.{key}"
            )
        return [str(item) for item in value]
    return []


def _bits(quant: Mapping[str, Any]) -> int:
    bits = _whole(quant.get("bits", quant.get("w_bit", 4)))
    if bits not in (2, 3, 4, 5, 6, 8):
        raise PlanError(
            f"quantization_config.bits: {bits!r} is not a width that engines load", field="quantization_config.bits"
        )
    return bits


def _whole(value: Any, index: int | None = None) -> int:
    if index is not None:
        value = value[index] if isinstance(value, list | tuple) and len(value) > index else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) > 2**31:
        raise PlanError(f"quantization_config: {value!r} is not a whole number", field="quantization_config")
    return int(value)


def _pattern(target: str) -> re.Pattern[str]:
    return re.compile(_expression(target))


def _expression(target: str) -> str:
    """One exclusion as a regular expression over stripped names: ``re:…``, with ``*``, or a name and all below it."""
    if target.startswith("re:"):
        body = target[3:].lstrip("^")
        return rf"(?:(?:model|language_model|backbone)\.)*(?:{_without_prefix(body)})"
    stripped = strip(target)
    if "*" in stripped or "?" in stripped:
        return fnmatch.translate(stripped).removesuffix(r"\Z").removesuffix(r"\z") + r"(?:\..*)?$"
    if "." not in stripped:
        return rf"(?:.*\.)?{re.escape(stripped)}(?:\..*)?$"
    return rf"{re.escape(stripped)}(?:\..*)?$"


def _without_prefix(body: str) -> str:
    return re.sub(r"^(?:(?:model|language_model|backbone)\\?\.)+", "", body)


def _patterns(targets: Sequence[str]) -> re.Pattern[str] | None:
    if not targets:
        return None
    try:
        return re.compile("|".join(f"(?:{_expression(target)})" for target in targets))
    except re.error as error:
        raise PlanError(
            f"quantization_config.ignore: not a regular expression ({error})", field="quantization_config.ignore"
        ) from error
