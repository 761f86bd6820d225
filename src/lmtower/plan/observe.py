"""Learning from the machine: what an engine's log says it took, beside what was planned.

Lines are those of vLLM 0.9 to 0.33. The difference in what is neither weights nor cache becomes a correction of the
overhead, kept in a small JSON file beside the tower file; the next plan adds it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lmtower.errors import PlanError
from lmtower.plan.types import EnginePlan

_GIB = 1024**3
_NUMBER = r"(-?[\d,]+(?:\.\d+)?)"
_LINES: tuple[tuple[str, re.Pattern[str], float], ...] = (
    ("weights_bytes", re.compile(rf"[Mm]odel loading took {_NUMBER} ?(?:GiB|GB)"), _GIB),
    ("kv_cache_bytes", re.compile(rf"Available KV cache memory: {_NUMBER} ?GiB"), _GIB),
    ("kv_cache_bytes", re.compile(rf"reserved {_NUMBER} ?GiB memory for KV [Cc]ache"), _GIB),
    ("weights_bytes", re.compile(rf"Actual usage is {_NUMBER} ?GiB for weight"), _GIB),
    ("graph_bytes", re.compile(rf"{_NUMBER} ?GiB for CUDAGraph memory"), _GIB),
    ("kv_cache_tokens", re.compile(rf"GPU KV cache size: {_NUMBER} tokens"), 1),
    ("max_concurrency", re.compile(rf"Maximum concurrency for [\d,]+ tokens per request: {_NUMBER}x"), 1),
    ("max_model_len", re.compile(rf"Maximum concurrency for {_NUMBER} tokens per request"), 1),
    ("block_size", re.compile(rf"Setting attention block size to {_NUMBER} tokens"), 1),
    ("num_blocks", re.compile(rf"# (?:GPU|cuda) blocks: {_NUMBER}"), 1),
    ("graph_estimate_bytes", re.compile(rf"Estimated CUDA graph memory: {_NUMBER} ?GiB"), _GIB),
    ("graph_bytes", re.compile(rf"CUDA graph pool memory: {_NUMBER} ?GiB"), _GIB),
    ("graph_bytes", re.compile(rf"Graph capturing finished in [\d.]+ secs, took {_NUMBER} ?GiB"), _GIB),
    ("activation_bytes", re.compile(rf"{_NUMBER} ?GiB for peak activation"), _GIB),
    ("activation_bytes", re.compile(rf"PyTorch activation peak memory takes {_NUMBER} ?GiB"), _GIB),
    ("non_torch_bytes", re.compile(rf"{_NUMBER} ?GiB for non-torch"), _GIB),
    ("non_torch_bytes", re.compile(rf"non_torch_memory takes {_NUMBER} ?GiB"), _GIB),
    ("required_bytes", re.compile(rf"max seq len \([\d,]+\), \(?{_NUMBER} ?GiB KV cache is needed"), _GIB),
    ("estimated_max_len", re.compile(rf"estimated maximum model length is {_NUMBER}"), 1),
)
_REFUSALS = (
    "No available memory for the cache blocks",
    "is less than desired GPU memory utilization",
    "estimated maximum model length is",
    "exceeds available Mamba cache blocks",
    "Error in memory profiling",
    "CUDA out of memory",
)
_PREFIX = re.compile(r"^.*?\b(?:vllm|core|gpu_\w+|kv_cache_utils|worker)\S*\]\s*")


@dataclass(frozen=True, slots=True)
class Observation:
    """Figures of one start, as far as the log gives them. The last line of a kind wins (restarts)."""

    figures: Mapping[str, float]
    refusal: str | None = None

    def get(self, name: str) -> float | None:
        """One figure, or None when the log does not give it."""
        return self.figures.get(name)


def read_log(text: str) -> Observation:
    """Parses an engine's log. Raises PlanError when it holds none of the lines."""
    figures: dict[str, float] = {}
    refusal = None
    for line in text.splitlines():
        for name, pattern, unit in _LINES:
            match = pattern.search(line)
            if match is not None:
                figures[name] = float(match[1].replace(",", "")) * unit
        if any(words in line for words in _REFUSALS):
            refusal = _PREFIX.sub("", line).strip()
    if not figures and refusal is None:
        raise PlanError(
            "the log has none of vLLM's memory lines (“Model loading took”, “Available KV cache "
            "memory”, “GPU KV cache size”)",
            field="observe",
        )
    return Observation(figures, refusal)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure: planned, observed. ``error`` is relative to the observed one; None where that is 0."""

    name: str
    planned: float
    observed: float

    @property
    def error(self) -> float | None:
        """(planned − observed) / observed."""
        return (self.planned - self.observed) / self.observed if self.observed else None


def compare(plan: EnginePlan, seen: Observation) -> tuple[Comparison, ...]:
    """Every figure that both sides have."""
    planned: dict[str, float] = {
        "weights_bytes": plan.weights_bytes,
        "kv_cache_bytes": plan.kv_cache_bytes,
        "kv_cache_tokens": plan.kv_cache_tokens,
        "max_concurrency": plan.max_concurrency,
        "max_model_len": plan.max_model_len,
        "block_size": plan.block_size,
        "num_blocks": plan.num_blocks,
        "activation_bytes": plan.overhead.activation_bytes,
        "graph_bytes": plan.overhead.graph_bytes,
    }
    return tuple(Comparison(name, planned[name], value) for name, value in seen.figures.items() if name in planned)


def correction(plan: EnginePlan, seen: Observation) -> int:
    """Bytes to add to the overhead next time: what the log knows better of weights, activation and graphs.

    Negative where the plan was too careful, but never below half of the planned overhead.
    """
    total = 0.0
    total += _difference(seen.get("weights_bytes"), plan.weights_bytes)
    total += _difference(seen.get("activation_bytes"), plan.overhead.activation_bytes)
    total += _difference(seen.get("graph_bytes"), plan.overhead.graph_bytes)
    before = plan.overhead.correction_bytes
    return max(int(total), -(plan.overhead_bytes - before) // 2)


def _difference(observed: float | None, planned: int) -> float:
    return 0.0 if observed is None else observed - planned


def key(plan: EnginePlan) -> str:
    """What a correction belongs to: it must not outlive a change of the model or of the flags it was measured with."""
    parts = (plan.model, plan.version, plan.tensor_parallel, plan.max_num_batched_tokens)
    return "|".join(str(part) for part in (*parts, plan.max_num_seqs, plan.speculative_tokens))


def read_corrections(text: str) -> dict[str, dict[str, object]]:
    """The file of corrections. Raises PlanError when it is not one."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise PlanError(f"observations: not JSON ({error})", field="observations") from error
    if not isinstance(value, dict) or not all(isinstance(entry, dict) for entry in value.values()):
        raise PlanError("observations: not an object of engines", field="observations")
    return value


def correction_for(plan: EnginePlan, saved: Mapping[str, Mapping[str, object]]) -> int:
    """The saved correction of an engine, when it was measured with the same model and flags; else 0."""
    entry = saved.get(plan.name, {})
    value = entry.get("correction_bytes")
    return value if entry.get("key") == key(plan) and isinstance(value, int) and abs(value) < 2**43 else 0


def entry(plan: EnginePlan, seen: Observation) -> dict[str, object]:
    """What is saved of one observation."""
    return {"key": key(plan), "correction_bytes": correction(plan, seen), "observed": dict(seen.figures)}


def rows(comparisons: tuple[Comparison, ...]) -> Iterator[tuple[str, str, str, str]]:
    """Text for a table: name, planned, observed, error."""
    for item in comparisons:
        if item.name.endswith("_bytes"):
            planned, observed = f"{item.planned / _GIB:.2f} GiB", f"{item.observed / _GIB:.2f} GiB"
        else:
            planned, observed = f"{item.planned:,.2f}".removesuffix(".00"), f"{item.observed:,.2f}".removesuffix(".00")
        yield (
            item.name.removesuffix("_bytes").replace("_", " "),
            planned,
            observed,
            "-" if item.error is None else f"{item.error:+.2%}",
        )
