"""Warnings that save a night, each with its reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lmtower.config import load
from lmtower.plan.estimate import Options
from lmtower.plan.fit import Question, fit
from lmtower.plan.hardware import facts
from lmtower.plan.planner import plan
from tests.plan.shapes import GIB, NANO, SUPER, files, preset, tower


def warnings(
    name: str, *, hardware: str | None = None, context: int | None = None, pool: int | None = None, **options: Any
) -> str:
    """All warnings of one model under some flags."""
    question = Question(files(name), Options(**options), facts(hardware) if hardware else None, context, pool)
    return "\n".join(fit(question).warnings)


@pytest.mark.parametrize(
    ("name", "asked", "words"),
    [
        (NANO, {"hardware": "h100"}, "no FP4 units"),
        ("Qwen__Qwen3-8B", {"context": 65536}, "above the trained length of 40960"),
        (SUPER, {}, "loads unquantised without a word"),
        (SUPER, {"prefix_caching": False}, "prefix caching is off"),
        (SUPER, {"mamba_cache_mode": "all"}, "a fifth of the concurrency"),
        (SUPER, {"version": "0.20.2", "max_num_batched_tokens": 4096}, "refuses to start"),
        (SUPER, {"speculative_tokens": 3}, "5.5 GiB of weights"),
        ("Qwen__Qwen3-VL-8B-Instruct", {"context": 200000}, "more than the weights"),
        ("Qwen__Qwen3-8B", {"context": 8192, "pool": int(1.13 * GIB)}, "Plan 1.1 ×"),
    ],
)
def test_setting_that_disappoints_is_warned_of(name: str, asked: dict[str, Any], words: str) -> None:
    """Each of them starts, and then costs a night."""
    assert words in warnings(name, **asked)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("Qwen__Qwen3-8B", {"hardware": "h100", "context": 8192}),
        ("nvidia__Gemma-4-26B-A4B-NVFP4", {"hardware": "dgx-spark", "context": 8192}),
    ],
)
def test_sound_setting_is_not_warned_of(name: str, asked: dict[str, Any]) -> None:
    """No noise where nothing is wrong."""
    assert warnings(name, **asked) == ""


def test_prompt_shorter_than_the_block_is_named_by_persona() -> None:
    """A persona whose prompt is shorter than the hybrid's block never hits with it alone."""
    engines = {"one": {"model": "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4", "context": 8192}}
    personas = {"plan": {"engine": "one", "system": "Think. " * 200}, "bare": {"engine": "one"}}
    found = plan(tower(engines, personas=personas)).engine("one").warnings
    assert [warning for warning in found if "'plan'" in warning and "8320" in warning]
    assert not [warning for warning in found if "'bare'" in warning]


def test_engines_of_one_node_must_not_start_together() -> None:
    """The order is part of the warning."""
    assert any("one engine at a time" in warning and "nemotron, eyes" in warning for warning in plan(preset()).warnings)


def test_written_utilisation_of_a_later_engine_is_warned_of() -> None:
    """What it asks for must still be free when its turn comes."""
    made = plan(preset(embed={"args": {"gpu-memory-utilization": 0.05}})).engine("embed")
    assert any("must still be free" in warning for warning in made.warnings)
    assert made.gpu_memory_utilization == 0.05


def test_utilisation_that_admission_cannot_satisfy_is_refused() -> None:
    """As on the H200: beside an engine that holds 118 GiB, 0.2 asks for 28 of the 21 that are free; 0.151 starts."""
    big = {"model": "Qwen/Qwen3-8B", "context": 40960, "sequences": 64, "kv_cache_memory": "100 GiB"}
    small = {"model": "Qwen/Qwen2.5-Coder-1.5B", "context": "8k", "sequences": 16, "kv_cache_memory": "4 GiB"}
    asked = {**small, "args": {"gpu-memory-utilization": 0.2}}
    refused = plan(tower({"big": big, "small": asked}, hardware="h200"))
    assert not refused.fits
    assert any("Remove it, or write 0.151" in reason for reason in refused.reasons)
    asked["args"] = {"gpu-memory-utilization": 0.151}
    assert plan(tower({"big": big, "small": asked}, hardware="h200")).fits


def test_booted_spark_has_less_than_the_catalogue_says() -> None:
    """What fits under the total may leave less than the reserve on a machine that runs an operating system."""
    made = plan(preset(eyes={"context": "32k", "sequences": 4}))
    assert made.fits
    assert any("boots with 113 to 116 GiB free" in warning for warning in made.warnings)
    spark = load(Path(__file__).parents[2] / "examples/dgx-spark/tower.yaml").tower
    assert not any("boots with" in warning for warning in plan(spark).warnings)


def test_draft_of_super_says_what_its_weights_cost() -> None:
    """Multi-token prediction of the 120B: 5.5 GiB of weights, whatever they are read from."""
    made = plan(preset(nemotron={"speculative_tokens": 3}))
    said = [warning for engine in made.engines for warning in engine.warnings if "speculative" in warning]
    assert any(re.search(r"costs 5\.\d GiB of weights", warning) for warning in said)
