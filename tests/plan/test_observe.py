"""Reading the log lines of real engines."""

from __future__ import annotations

import pytest

from lmtower.errors import PlanError
from lmtower.plan.estimate import Options
from lmtower.plan.fit import Question, fit
from lmtower.plan.observe import compare, correction, correction_for, entry, read_corrections, read_log
from lmtower.plan.planner import plan
from lmtower.plan.sources import read_path
from tests.plan.shapes import GIB, MODELS, files, preset, tower

DATA = MODELS.parent

PROFILED = (
    "(EngineCore pid=88) INFO 09-07 12:00:01 [gpu_worker.py:822] Free memory on device (138.9/139.8 GiB) "
    "on startup. "
    "Desired GPU memory utilization is (0.9, 125.82 GiB). "
    "Actual usage is 15.27 GiB for weight, 1.29 GiB for peak activation, "
    "0.23 GiB for non-torch memory, and 0.6 GiB for CUDAGraph memory."
)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("Model loading took 69.62 GiB memory and 512.1 seconds", "weights_bytes", 69.62 * GIB),
        ("model weights take 1 Model loading took 14.9888 GB and 3 s", "weights_bytes", 14.9888 * GIB),
        ("Available KV cache memory: -2.14 GiB", "kv_cache_bytes", -2.14 * GIB),
        (
            "reserved 6.0 GiB memory for KV Cache as specified by kv_cache_memory_bytes config",
            "kv_cache_bytes",
            6 * GIB,
        ),
        ("GPU KV cache size: 1,179,648 tokens", "kv_cache_tokens", 1179648),
        ("Maximum concurrency for 262,144 tokens per request: 4.50x", "max_concurrency", 4.5),
        ("Maximum concurrency for 262,144 tokens per request: 4.50x", "max_model_len", 262144),
        ("Setting attention block size to 8320 tokens to ensure that", "block_size", 8320),
        ("# GPU blocks: 8505, # CPU blocks: 2340", "num_blocks", 8505),
        ("Graph capturing finished in 23 secs, took 2.24 GiB", "graph_bytes", 2.24 * GIB),
        ("CUDA graph pool memory: 0.73 GiB (actual), -20.5 GiB (estimated)", "graph_bytes", 0.73 * GIB),
        ("Estimated CUDA graph memory: -20.5 GiB", "graph_estimate_bytes", -20.5 * GIB),
        (PROFILED, "activation_bytes", 1.29 * GIB),
        (PROFILED, "non_torch_bytes", 0.23 * GIB),
        (PROFILED, "graph_bytes", 0.6 * GIB),
    ],
)
def test_line_is_read(line: str, name: str, value: float) -> None:
    """Figures of vLLM's memory lines, in bytes and counts."""
    assert read_log(line).get(name) == pytest.approx(value)


def test_engine_started_by_up_on_an_h100_is_what_was_planned() -> None:
    """The whole log of Qwen3-8B under ``lmtower up`` (vLLM 0.25.1): every figure was planned, nothing to correct."""
    seen = read_log((DATA / "observed" / "vllm-0.25.1-h100-qwen3-8b.log").read_text("utf-8"))
    engine = {"model": "Qwen/Qwen3-8B", "context": "16k", "sequences": 8, "version": "0.25.1"}
    engine["args"] = {"load-format": "dummy", "enforce-eager": True}
    made = plan(tower({"big": engine}, hardware="h100"), models={"big": files("Qwen__Qwen3-8B")}).engine("big")
    found = {each.name: each for each in compare(made, seen)}
    assert seen.get("kv_cache_tokens") == made.kv_cache_tokens == 128_015
    assert all(abs(each.observed - each.planned) <= 0.003 * each.planned for each in found.values())
    assert abs(correction(made, seen)) < 0.01 * GIB


def test_engine_over_two_h100_is_what_was_planned() -> None:
    """Qwen3-8B with ``tensor_parallel: 2`` under ``lmtower up``: each rank's weights, and the cache of both."""
    seen = read_log((DATA / "observed" / "vllm-0.25.1-2xh100-qwen3-8b-tp2.log").read_text("utf-8"))
    engine = {"model": "Qwen/Qwen3-8B", "context": "16k", "sequences": 8, "version": "0.25.1", "tensor_parallel": 2}
    engine["args"] = {"load-format": "dummy", "enforce-eager": True}
    made = plan(tower({"wide": engine}, hardware="2x h100"), models={"wide": files("Qwen__Qwen3-8B")}).engine("wide")
    found = {each.name: each for each in compare(made, seen)}
    assert seen.get("kv_cache_tokens") == made.kv_cache_tokens == 128_015
    assert all(abs(each.observed - each.planned) <= 0.003 * each.planned for each in found.values())


@pytest.mark.parametrize(
    ("config", "gpus", "pool", "context", "sequences", "batch", "eager", "held"),
    [
        ("Qwen__Qwen3-8B", 2, 8.79, 16000, 8, 8192, True, 19.32),
        ("Qwen__Qwen3-32B", 2, 4, 8192, 8, 8192, True, 37.656),
        ("meta-llama__Meta-Llama-3.1-8B", 2, 4, 8192, 8, 2048, True, 13.848),
        ("Qwen__Qwen3-1.7B", 2, 2, 8192, 16, 2048, False, 5.98),
        ("Qwen__Qwen3-1.7B", 1, 2, 8192, 8, 2048, True, 6.258),
    ],
)
def test_rank_holds_what_is_planned(
    config: str, gpus: int, pool: float, context: int, sequences: int, batch: int, eager: bool, held: float
) -> None:
    """GiB that nvidia-smi showed for each rank on two H100 after prompts (vLLM 0.25.1): within the planned total, and
    no more than 1.5 GiB under it, of which one is the margin.
    """
    options = Options(
        max_num_seqs=sequences, max_num_batched_tokens=batch, version="0.25.1", eager=eager, tensor_parallel=gpus
    )
    answer = fit(Question(read_path(MODELS / f"{config}.json"), options, None, context, int(pool * GIB)))
    planned = answer.total_bytes / GIB
    assert held <= planned <= held + 1.5


def test_refusal_is_kept() -> None:
    """The engine's own sentence, without its prefix."""
    text = (
        "ERROR 09-07 12:00:01 [core.py:800] ValueError: To serve at least one request with the model's max seq len "
        "(131072), (8.18 GiB KV cache is needed, which is larger than the available KV cache memory "
        "(7.04 GiB). Based on "
        "the available memory, the estimated maximum model length is 112896."
    )
    seen = read_log(text)
    assert seen.refusal is not None
    assert seen.refusal.startswith("ValueError: To serve")
    assert seen.get("estimated_max_len") == 112896
    assert seen.get("required_bytes") == pytest.approx(8.18 * GIB)


def test_log_without_memory_lines_is_refused() -> None:
    """A log of something else is an error that names the lines."""
    with pytest.raises(PlanError, match="Model loading took"):
        read_log("GET /health 200\n")


def test_correction_is_what_the_log_knows_better() -> None:
    """Weights that are larger and graphs that are smaller than planned."""
    made = plan(preset()).engine("eyes")
    seen = read_log("Model loading took 10.93 GiB\nGraph capturing finished in 9 secs, took 0.02 GiB")
    expected = 10.93 * GIB - made.weights_bytes + 0.02 * GIB - made.overhead.graph_bytes
    assert correction(made, seen) == pytest.approx(expected, abs=2)
    assert {item.name for item in compare(made, seen)} == {"weights_bytes", "graph_bytes"}


def test_correction_never_eats_the_overhead() -> None:
    """An absurd log cannot take more than half of the planned overhead."""
    made = plan(preset()).engine("eyes")
    assert (
        correction(made, read_log("Model loading took 0.01 GiB")) == -(made.overhead_bytes // 2)
        or correction(made, read_log("Model loading took 0.01 GiB")) == -(made.overhead_bytes) // 2
    )


def test_saved_correction_belongs_to_its_flags() -> None:
    """Another model, version or batch forgets it; nonsense in the file is refused."""
    made = plan(preset())
    saved = {"eyes": entry(made.engine("eyes"), read_log("Model loading took 10.93 GiB"))}
    assert correction_for(made.engine("eyes"), saved) > 0
    assert correction_for(made.engine("coder"), saved) == 0
    with pytest.raises(PlanError):
        read_corrections("[1]")
    with pytest.raises(PlanError):
        read_corrections("{")
