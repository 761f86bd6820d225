"""Whole towers: the preset fits, its greedy variant does not, and every suggestion really fits."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmtower.config import load
from lmtower.config.types import Tower
from lmtower.errors import PlanError
from lmtower.plan.hardware import facts
from lmtower.plan.planner import plan
from lmtower.plan.types import NodeFacts
from lmtower.plan.versions import of_image
from tests.plan.shapes import GIB, preset, tower

GREEDY: dict[str, dict[str, Any]] = {"nemotron": {"speculative_tokens": 3}, "eyes": {"context": "200k"}}
"""MTP on the 120B and a 200k vision context: must be refused."""


def test_preset_fits_with_its_reserve() -> None:
    """The Spark preset leaves its 12 GiB."""
    made = plan(preset())
    assert made.fits
    assert made.reasons == ()
    (node,) = made.nodes
    assert node.free_bytes >= 0
    assert node.facts.memory_total_bytes - node.used_bytes >= 12 * GIB
    assert sum(engine.total_bytes for engine in made.engines) == node.used_bytes


@pytest.mark.parametrize("free_at_boot", [113, 114, 116])
def test_preset_fits_on_a_spark_as_it_boots(free_at_boot: int) -> None:
    """A real Spark boots with 113 to 116 GiB free; MemAvailable is still over the reserve when all engines run."""
    spark = load(Path(__file__).parents[2] / "examples/dgx-spark/tower.yaml").tower
    node = replace(facts("dgx-spark", name="spark"), memory_available_bytes=free_at_boot * GIB)
    made = plan(spark, {"spark": node})
    assert made.reasons == ()
    assert free_at_boot * GIB - made.nodes[0].used_bytes >= 12 * GIB


def test_crowded_node_is_refused_with_what_was_free() -> None:
    """101 GiB free at boot were seen, too: the reason names them, not only the total."""
    node = replace(facts("dgx-spark", name="box"), memory_available_bytes=101 * GIB)
    made = plan(preset(), {"box": node})
    assert not made.fits
    assert "101.0 GiB free before any engine" in made.reasons[0]


def test_greedy_variant_is_refused_with_numbers() -> None:
    """MTP and a 200k vision context do not fit, and a smaller context is named."""
    made = plan(preset(**GREEDY))
    assert not made.fits
    assert "too much" in made.reasons[0]
    assert any(re.match(r"engines\.eyes\.context: \d+ fits", reason) for reason in made.reasons)


def test_greedy_variant_is_refused_for_one_sequence_too() -> None:
    """Even one 200k vision request is too much beside the 120B with MTP."""
    assert not plan(preset(**{**GREEDY, "eyes": {"context": "200k", "sequences": 1}})).fits


def test_preset_is_planned_in_less_than_300_ms() -> None:
    """Planning offline from the bundled catalogue is quick."""
    made = preset()
    start = time.perf_counter()
    plan(made)
    assert time.perf_counter() - start < 0.3


def test_first_suggestion_fits_when_written() -> None:
    """What the planner advises has been tried."""
    made = plan(preset(**GREEDY))
    advice = next(reason for reason in made.reasons if "eyes.context" in reason)
    context = re.search(r"context: (\d+) fits", advice)
    assert context is not None
    assert plan(preset(**{**GREEDY, "eyes": {"context": context[1]}})).fits


@pytest.mark.parametrize(
    ("engine", "advice"),
    [
        (
            {"model": "Qwen/Qwen3-8B", "context": 40960, "sequences": 16},
            r"engines\.one\.(sequences|context|kv_cache_dtype): \w+ fits",
        ),
        ({"model": "meta-llama/Llama-3.1-8B", "context": 65536, "sequences": 1}, "kv_cache_dtype: fp8|context"),
        ({"model": "Qwen/Qwen3-8B", "context": 1024, "sequences": 1, "speculative_tokens": 0}, None),
    ],
)
def test_refusal_on_a_card_names_a_change(engine: dict[str, Any], advice: str | None) -> None:
    """An RTX 4090 with 24 GB: what does not fit says what would."""
    made = plan(tower({"one": engine}, hardware="rtx-4090"))
    if advice is None:
        assert made.fits
    else:
        assert not made.fits
        assert re.search(advice, "\n".join(made.reasons))


def test_fp8_checkpoint_is_suggested_where_weights_are_the_problem() -> None:
    """A 32B in bf16 on 48 GB: the FP8 checkpoint is half, said in GiB."""
    made = plan(tower({"one": {"model": "Qwen/Qwen3-32B", "context": 8192, "sequences": 1}}, hardware="l40s"))
    assert not made.fits
    assert re.search(r"use the FP8 checkpoint, −\d+\.\d GiB", "\n".join(made.reasons))


def test_several_changes_are_combined_when_one_is_not_enough() -> None:
    """Two long engines on one small card: contexts are halved together."""
    engines = {
        "a": {"model": "Qwen/Qwen3-1.7B", "context": 40960, "sequences": 8, "kv_cache_dtype": "fp8"},
        "b": {"model": "Qwen/Qwen3-0.6B", "context": 40960, "sequences": 8, "kv_cache_dtype": "fp8"},
    }
    made = plan(tower(engines, hardware="16 GiB"))
    assert not made.fits
    assert any(reason.startswith(("together: ", "engines.")) for reason in made.reasons[1:])


def test_hopeless_set_says_so() -> None:
    """A 70B in bf16 on a laptop card: no change of flags helps."""
    made = plan(tower({"one": {"model": "meta-llama/Llama-3.1-70B-Instruct", "context": 8192}}, hardware="rtx-4090"))
    assert not made.fits
    assert "choose smaller models" in made.reasons[-1]


def test_start_order_is_largest_first_and_every_start_passes_admission() -> None:
    """vLLM's check: utilisation × total must be free when an engine's turn comes, and hold what it needs."""
    made = plan(preset())
    node = made.nodes[0].facts
    free = node.memory_available_bytes
    order = sorted(made.engines, key=lambda engine: engine.start_order)
    assert [engine.name for engine in order] == ["nemotron", "eyes", "coder", "embed"]
    for engine in order:
        assert engine.gpu_memory_utilization is not None
        asked = engine.gpu_memory_utilization * node.memory_total_bytes
        assert engine.total_bytes <= asked <= free
        free -= engine.total_bytes


def test_pool_is_pinned_and_holds_all_sequences() -> None:
    """``kv_cache_memory_bytes`` holds ``sequences`` requests of full length."""
    engine = plan(preset()).engine("nemotron")
    assert engine.kv_cache_memory_bytes == engine.kv_cache_bytes >= 4 * engine.kv_bytes_per_request
    assert engine.max_concurrency >= 4


def test_ports_count_up_and_respect_written_ones() -> None:
    """Ports follow the order of the file from 8100; a written one is kept and skipped."""
    made = plan(preset(eyes={"port": 8100}))
    assert [engine.port for engine in made.engines] == [8101, 8100, 8102, 8103]


def test_context_max_takes_what_is_left() -> None:
    """``context: max`` is the longest that leaves the reserve, up to the trained length."""
    made = plan(preset(eyes={"context": "max", "sequences": 1}))
    eyes = made.engine("eyes")
    assert made.fits
    assert 65536 < eyes.max_model_len < 262144
    longer = preset(eyes={"context": eyes.max_model_len + 8192, "sequences": 1})
    assert not plan(longer).fits


def test_default_context_is_the_trained_one_where_it_fits() -> None:
    """Without ``context`` a small model gets all that it was trained for."""
    made = plan(tower({"one": {"model": "Qwen/Qwen2.5-Coder-1.5B"}}))
    assert made.engine("one").max_model_len == 32768


def test_unified_memory_takes_an_fp8_cache_but_not_for_biased_keys() -> None:
    """Qwen2.5's biased keys stay in 16 bit; a written dtype always wins."""
    made = plan(preset())
    assert [made.engine(name).kv_cache_dtype for name in ("nemotron", "eyes", "coder")] == ["fp8", "fp8", "bf16"]
    assert plan(preset(coder={"kv_cache_dtype": "fp8"})).engine("coder").kv_cache_dtype == "fp8"


def test_args_of_the_tower_file_win() -> None:
    """Flags under ``args`` are what will be started, so they are what is planned."""
    made = plan(preset(eyes={"args": {"max-model-len": 16384, "max-num-seqs": 2, "kv-cache-dtype": "bf16"}}))
    eyes = made.engine("eyes")
    assert (eyes.max_model_len, eyes.max_num_seqs, eyes.kv_cache_dtype) == (16384, 2, "bf16")


def test_old_version_gets_a_batch_that_holds_a_block() -> None:
    """0.20 refuses aligned caching with a batch below 8,320 tokens, so the plan's batch is above."""
    engine = plan(preset(nemotron={"version": "0.20.2"})).engine("nemotron")
    assert engine.max_num_batched_tokens >= engine.block_size == 8320


def test_written_batch_below_the_block_is_refused_on_old_versions() -> None:
    """The refusal names the number that works."""
    made = plan(preset(nemotron={"version": "0.20.2", "batch_tokens": 4096}))
    assert not made.fits
    assert "8320 works" in made.reasons[0]


def test_match_unit_divides_the_block() -> None:
    """``prefix_match_unit`` is set where the runtime has it: 64 divides 8,320."""
    assert plan(preset()).engine("nemotron").prefix_match_unit == 64
    assert plan(preset(nemotron={"version": "0.25.1"})).engine("nemotron").prefix_match_unit is None


def test_fixed_pool_that_cannot_hold_a_request_is_refused() -> None:
    """``kv_cache_memory`` below one request names the context that fits."""
    made = plan(preset(eyes={"kv_cache_memory": "1 GiB"}))
    assert not made.fits
    assert re.search(r"engines\.eyes\.context: \d+ fits", made.reasons[0])


def test_external_engine_costs_nothing() -> None:
    """An engine with a url has no bytes, no port and no node."""
    made = plan(
        tower({"far": {"url": "http://10.0.0.5:8000", "model": "served"}, "near": {"model": "Qwen/Qwen3-0.6B"}})
    )
    far = made.engine("far")
    assert (far.runtime, far.total_bytes, far.port, far.nodes) == ("external", 0, None, ())


def test_engines_spread_over_the_gpus_of_a_node() -> None:
    """Two 8B engines on two cards sit on different ones."""
    engines = {name: {"model": "Qwen/Qwen3-8B", "context": 8192, "sequences": 2} for name in ("a", "b")}
    made = plan(tower(engines, hardware="2x rtx-4090"))
    assert made.fits
    assert {devices for name in ("a", "b") for devices in made.engine(name).devices.values()} == {(0,), (1,)}


def test_tensor_parallel_needs_that_many_gpus() -> None:
    """Four GPUs wanted of two is refused."""
    made = plan(tower({"one": {"model": "Qwen/Qwen3-32B", "tensor_parallel": 4, "context": 8192}}, hardware="2x h100"))
    assert not made.fits
    assert "4 GPUs wanted" in made.reasons[0]


def test_replicas_take_memory_on_every_node() -> None:
    """``nodes: [a, b]`` runs one copy on each."""
    made = plan(
        Tower.model_validate(
            {
                "nodes": {"a": {"hardware": "rtx-4090"}, "b": {"hardware": "rtx-4090"}},
                "engines": {"one": {"model": "Qwen/Qwen3-8B", "nodes": ["a", "b"], "context": 4096, "sequences": 1}},
                "personas": {"one": {"engine": "one"}},
            }
        )
    )
    assert made.fits
    assert made.nodes[0].used_bytes == made.nodes[1].used_bytes == made.engine("one").total_bytes


def test_one_engine_over_two_nodes_halves_its_weights() -> None:
    """``tensor_parallel`` over several nodes is one copy; each node holds its share."""
    engine = {"model": "Qwen/Qwen3-32B", "nodes": ["a", "b"], "tensor_parallel": 2, "context": 4096, "sequences": 1}
    values = {
        "nodes": {"a": {"hardware": "l40s"}, "b": {"hardware": "l40s"}},
        "engines": {"one": engine},
        "personas": {"p": {"engine": "one"}},
    }
    made = plan(Tower.model_validate(values))
    assert made.fits
    assert made.engine("one").weights_bytes == pytest.approx(32.8 * GIB * 2 / 2.14, rel=0.1)


@pytest.mark.parametrize(
    ("engines", "message"),
    [
        ({"one": {"model": "nobody/nothing"}}, "neither bundled"),
        ({"one": {"model": "Qwen/Qwen3-8B", "kv_cache_dtype": "fp3"}}, r"engines\.one .*fp3"),
        ({"one": {"model": "Qwen/Qwen3-8B", "args": {"max-model-len": "long"}}}, "max-model-len"),
    ],
)
def test_engine_that_cannot_be_planned_is_named(engines: dict[str, Any], message: str) -> None:
    """A PlanError carries the engine's path."""
    with pytest.raises(PlanError, match=message):
        plan(tower(engines))


def test_node_without_hardware_is_refused_with_what_to_write() -> None:
    """Memory that nobody knows is not invented."""
    with pytest.raises(PlanError, match=r"nodes\.box\.hardware: missing"):
        plan(tower({"one": {"model": "Qwen/Qwen3-8B"}}, hardware=None))  # type: ignore[arg-type]


def test_probed_facts_win_over_the_catalogue() -> None:
    """A node that has only 80 GiB free refuses what the catalogue would take."""
    probed: NodeFacts = replace(facts("dgx-spark", name="box"), memory_available_bytes=80 * GIB)
    assert not plan(preset(), {"box": probed}).fits


def test_correction_of_an_observed_start_is_added() -> None:
    """Bytes learned from a log are part of the next plan."""
    plain, learned = plan(preset()).engine("eyes"), plan(preset(), corrections={"eyes": GIB}).engine("eyes")
    assert learned.overhead_bytes == plain.overhead_bytes + GIB


def test_decode_bound_is_bandwidth_over_active_bytes() -> None:
    """The 120B reads about 10.8 GB a token: at most 25 tokens/s on a Spark (measured: 22.7 to 23.7)."""
    speed = plan(preset()).engine("nemotron").decode_tokens_per_second
    assert 23.7 < speed < 30


def test_max_context_is_what_context_max_would_give() -> None:
    """The longest context of an engine beside all others, told even where a shorter one is written."""
    written = plan(preset(eyes={"context": "32k", "sequences": 1})).engine("eyes")
    asked = plan(preset(eyes={"context": "max", "sequences": 1})).engine("eyes")
    assert written.max_context == asked.max_model_len


def test_encoder_takes_a_whole_input_in_one_batch() -> None:
    """vLLM refuses an encoder whose batch is shorter than its context."""
    engine = plan(preset(embed={"context": 8192})).engine("embed")
    assert engine.max_num_batched_tokens == engine.max_model_len == 8192
    assert engine.pooling
    assert any("above the trained length" in warning for warning in engine.warnings)


def test_nodes_with_enough_gpus_hold_a_replica_each() -> None:
    """``tensor_parallel: 2`` on two nodes of two GPUs is two copies; each node holds a whole one."""
    engine = {"model": "Qwen/Qwen3-32B", "nodes": ["a", "b"], "tensor_parallel": 2, "context": 4096, "sequences": 1}
    nodes = {name: {"hardware": "2x h100", "address": f"ssh://me@{name}"} for name in ("a", "b")}
    made = plan(Tower.model_validate({"nodes": nodes, "engines": {"one": engine}, "personas": {}}))
    assert made.fits
    assert made.engines[0].devices == {"a": (0, 1), "b": (0, 1)}


def test_replica_takes_the_gpus_that_are_free_on_its_own_node() -> None:
    """A larger engine has the first GPU of one node: the copy there takes the second, the other copy the first."""
    small = {"model": "Qwen/Qwen3-8B", "nodes": ["a", "b"], "context": 4096, "sequences": 1}
    large = {"model": "Qwen/Qwen3-32B", "node": "a", "context": 4096, "sequences": 1}
    nodes = {name: {"hardware": "2x h100", "address": f"ssh://me@{name}"} for name in ("a", "b")}
    made = plan(Tower.model_validate({"nodes": nodes, "engines": {"s": small, "l": large}, "personas": {}}))
    assert made.fits
    assert made.engine("l").devices == {"a": (0,)}
    assert made.engine("s").devices == {"a": (1,), "b": (0,)}


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("vllm/vllm-openai:v0.20.2", "0.20.2"),
        ("vllm/vllm-openai:v0.33.0-aarch64", "0.33.0"),
        ("registry.lan:5000/me/vllm-spark:0.27-cu130", "0.27"),
        ("nvcr.io/nvidia/vllm:26.02-py3", None),
        ("vllm/vllm-openai:latest", None),
        ("/opt/vllm-0.25/bin/python", None),
        ("registry.lan:5000/vllm", None),
        (None, None),
    ],
)
def test_version_is_read_from_the_tag_of_an_image(image: str | None, version: str | None) -> None:
    """Whoever pins an image has said its version; a year of NVIDIA's or a path is none."""
    assert of_image(image) == version


def test_pinned_image_is_planned_for_its_version() -> None:
    """vLLM 0.20 wants a batch of a whole block on hybrids, and knows no match unit."""
    made = plan(preset(nemotron={"image": "vllm/vllm-openai:v0.20.2"}))
    assert made.engines[0].version == "0.20.2"
    assert made.engines[0].prefix_match_unit is None
