"""The planner against real logs: case, figure, predicted, logged, error. Rows are those of tests/data/cases.

``reading.json`` says how each log is to be read (version, draft tokens, prefix caching), and why a row cannot be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmtower.plan.estimate import Estimate, Options, estimate
from lmtower.plan.fit import Fit, Question, fit
from lmtower.plan.hardware import facts
from lmtower.plan.model import ModelFiles
from lmtower.plan.overhead import MARGIN
from lmtower.plan.sources import read_path

_GIB = 1024**3
DATA = Path(__file__).parent.parent / "tests" / "data"
_HALF = int(0.005 * _GIB)
"""Logs round GiB to two decimals."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one case. ``low`` and ``high``: what the planner gives at both ends of the log's rounding."""

    case: str
    what: str
    predicted: float
    logged: float
    tolerance: float
    low: float | None = None
    high: float | None = None

    @property
    def error(self) -> float:
        """Relative error; 0 where the log's rounding covers the difference."""
        if self.low is not None and self.high is not None and self.low <= self.logged <= self.high:
            return 0.0
        return (self.predicted - self.logged) / self.logged


def cases() -> list[dict[str, Any]]:
    """All logged cases with how to read them under ``reading``."""
    reading = json.loads((DATA / "cases" / "reading.json").read_text("utf-8"))
    lines = (DATA / "cases" / "vllm_memory_cases.jsonl").read_text("utf-8").splitlines()
    return [{**case, "reading": reading[case["id"]]} for case in map(json.loads, lines)]


def measured() -> list[dict[str, Any]]:
    """Rows measured on an H200 and on an H100."""
    files = (DATA / "cases" / "h200.jsonl", DATA / "cases" / "h100.jsonl")
    return [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]


def files_of(case: dict[str, Any]) -> ModelFiles | None:
    """Configuration of a case, with Qwen's FP8 layout where the log is of the FP8 release."""
    reading = case.get("reading", {})
    name = reading.get("config") or case["config"]
    if name is None:
        return None
    found = read_path(DATA / "models" / name)
    if not reading.get("fp8"):
        return found
    block = {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["visual"]}
    return ModelFiles(found.name, {**(found.config or {}), "quantization_config": block}, origin=found.origin)


def question_of(case: dict[str, Any], pool: int | None) -> Question | None:
    """What to ask the planner for a case; None when its model is not known."""
    files = files_of(case)
    if files is None:
        return None
    reading = case.get("reading", {})
    dtype = case.get("kv_cache_dtype_effective") or case.get("kv_cache_dtype") or "auto"
    if case.get("id", "").startswith("C") and dtype == "auto":
        dtype = "bf16"
    options = Options(
        kv_cache_dtype=dtype,
        max_num_seqs=reading.get("sequences") or case.get("max_num_seqs") or _flag(case, "max-num-seqs") or 256,
        max_num_batched_tokens=reading.get("batch")
        or case.get("max_num_batched_tokens")
        or _flag(case, "max-num-batched-tokens"),
        speculative_tokens=reading.get("speculative", 0),
        tensor_parallel=case.get("tp") or 1,
        prefix_caching=reading.get("prefix_caching", case.get("prefix_caching", True)),
        mamba_cache_mode=case.get("mamba_cache_mode"),
        text_only=case.get("text_only", False) or "language-model-only" in case.get("flags", ""),
        version=reading.get("version") or case.get("vllm_version"),
        eager=bool(case.get("eager")) or "enforce-eager" in case.get("flags", ""),
    )
    hardware = facts(reading["hardware"]) if "hardware" in reading else None
    return Question(
        files,
        options,
        hardware,
        case.get("max_model_len"),
        pool,
        sequences_given="max-num-seqs" in case.get("flags", ""),
    )


def _flag(case: dict[str, Any], name: str) -> int | None:
    match = re.search(rf"--{name} (\d+)", case.get("flags", ""))
    return int(match[1]) if match else None


def rows(case: dict[str, Any]) -> Iterator[Row]:
    """Every figure of a case that can be compared."""
    pool = case.get("kv_available_gib")
    exact = case.get("kv_available_bytes")
    question = question_of(case, int(pool * _GIB) if pool is not None else None)
    if question is None or "kv" in case.get("reading", {}):
        return
    yield from _estimate_rows(case, estimate(question.files, question.options, question.facts))
    if pool is not None and pool > 0:
        changes = (0, 0, 0) if exact else (0, -_HALF, _HALF)
        answers = [fit(_with_pool(question, (exact or int(pool * _GIB)) + change)) for change in changes]
        yield from _pool_rows(case, *answers)
    elif pool is None and case.get("kv_tokens"):
        yield _whole_blocks(case, fit(question))


def _whole_blocks(case: dict[str, Any], answer: Fit) -> Row:
    """A log without the pool's size still tells whole blocks: a wrong number of them a request gives other tokens."""
    cache, length = answer.estimate.cache, case["max_model_len"]
    blocks = round(case["kv_tokens"] * cache.blocks_per_request(length) / length)
    return Row(case["id"], "tokens of whole blocks", cache.tokens(blocks, length), case["kv_tokens"], 0.0)


def _with_pool(question: Question, pool: int) -> Question:
    return Question(
        question.files,
        question.options,
        question.facts,
        question.context,
        pool,
        question.utilisation,
        question.sequences_given,
    )


def _estimate_rows(case: dict[str, Any], made: Estimate) -> Iterator[Row]:
    name, reading = case["id"], case.get("reading", {})
    if case.get("weights_gib") and "weights" not in reading:
        yield Row(name, "weights GiB", made.weights.bytes / _GIB, case["weights_gib"], 0.01)
    if case.get("block_size"):
        yield Row(name, "block", made.cache.block_size, case["block_size"], 0.0)
    if case.get("activation_peak_gib"):
        shape = made.shape
        mixed = shape is not None and (shape.is_moe or shape.is_hybrid)
        yield Row(
            name,
            "activation GiB",
            made.overhead.activation_bytes / _GIB,
            case["activation_peak_gib"],
            0.25 if mixed else 0.10,
        )
    if case.get("required_kv_gib"):
        yield Row(
            name,
            "request GiB",
            made.cache.bytes_per_request(case["max_model_len"]) / _GIB,
            case["required_kv_gib"],
            0.001,
        )


def _pool_rows(case: dict[str, Any], middle: Fit, low: Fit, high: Fit) -> Iterator[Row]:
    name, tolerance = case["id"], case.get("reading", {}).get("kv_tolerance", 0.0)
    if case.get("num_gpu_blocks"):
        yield Row(name, "blocks", middle.num_blocks, case["num_gpu_blocks"], tolerance, low.num_blocks, high.num_blocks)
    if case.get("kv_tokens"):
        yield Row(
            name,
            "KV tokens",
            middle.kv_cache_tokens,
            case["kv_tokens"],
            tolerance,
            low.kv_cache_tokens,
            high.kv_cache_tokens,
        )
    if case.get("max_concurrency"):
        yield Row(
            name,
            "concurrency",
            middle.max_concurrency,
            case["max_concurrency"],
            tolerance,
            low.max_concurrency - 0.005,
            high.max_concurrency + 0.005,
        )
    if case.get("estimated_max_len"):
        yield Row(name, "longest", middle.longest_context, case["estimated_max_len"], 0.0)
    used = case.get("used_gib") or (case["process_used_mib"] / 1024 if case.get("process_used_mib") else None)
    if used is not None:
        # Never more than 0.5 GiB below; above is allowed, because room is used once real prompts come.
        total = middle.total_bytes / _GIB
        yield Row(name, "process GiB", total, used, 0.0, used if total >= used - 0.5 else total, total + 1e9)


def main() -> None:
    """Prints the table."""
    print("## The planner against real logs\n")
    print("| case | figure | predicted | logged | error |\n|---|---|---|---|---|")
    for case in (*cases(), *measured()):
        for row in rows(case):
            print(f"| {row.case} | {row.what} | {row.predicted:,.2f} | {row.logged:,.2f} | {row.error:+.2%} |")
    print(
        "\nError 0 % where the log's rounding (0.01 GiB) covers the difference; process totals hold "
        f"{MARGIN / _GIB:.0f} GiB of spare."
    )
    for case in cases():
        if "kv" in case["reading"]:
            print(f"- {case['id']} ({case['model']}): not compared, {case['reading']['kv']}")


def run(argv: list[str]) -> int:
    """For ``python -m benchmarks planner``; takes no options."""
    main()
    return 0


if __name__ == "__main__":
    main()
