"""Properties that hold for every model and every number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtower.errors import PlanError
from lmtower.plan.estimate import Options, estimate
from lmtower.plan.fit import Question, as_json, fit
from lmtower.plan.hardware import catalogue, facts
from lmtower.plan.kv import KvOptions, layout
from lmtower.plan.model import ModelFiles
from lmtower.plan.read import read_config
from lmtower.plan.solve import solve
from lmtower.plan.versions import rules
from lmtower.plan.wants import want
from tests.plan.shapes import GIB, NANO, QWEN, SUPER, config, files, tower

NAMES = [
    QWEN,
    NANO,
    SUPER,
    "google__gemma-4-26B-A4B",
    "openai__gpt-oss-120b",
    "deepseek-ai__DeepSeek-V3",
    "nvidia__Qwen3.6-27B-NVFP4",
]
VERSIONS = ["0.20.0", "0.20.2", "0.25.1", "0.27.1", "0.33.0"]
SHAPES = {name: read_config(config(name)) for name in NAMES}
JUNK: Any = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(-3, 3), max_size=3),
    st.just({}),
)


@given(
    st.sampled_from(NAMES),
    st.sampled_from(VERSIONS),
    st.integers(1, 300_000),
    st.integers(0, 100_000),
    st.integers(1, 65536),
)
def test_more_context_never_needs_less_memory(name: str, version: str, length: int, more: int, batch: int) -> None:
    """Blocks of a request grow with its length, in every version and mode."""
    cache = layout(SHAPES[name], KvOptions(rules(version), "bf16", max_num_batched_tokens=batch))
    assert cache.blocks_per_request(length) <= cache.blocks_per_request(length + more)
    assert cache.bytes_per_request(length) > 0


@given(st.sampled_from(NAMES), st.integers(0, 200 * GIB), st.integers(1, 262_144))
def test_longest_request_fits_and_the_next_does_not(name: str, pool: int, limit: int) -> None:
    """``longest`` is exact."""
    cache = layout(SHAPES[name], KvOptions(rules("0.25.1"), "bf16"))
    blocks = cache.blocks(pool)
    longest = cache.longest(blocks, limit)
    assert longest == 0 or cache.blocks_per_request(longest) <= blocks
    assert longest == limit or cache.blocks_per_request(longest + 1) > blocks


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(NAMES), st.integers(1, 1024), st.integers(1, 32768), st.integers(0, 4), st.booleans())
def test_bytes_are_never_negative(name: str, sequences: int, batch: int, spec: int, prefix: bool) -> None:
    """Weights, overhead and every part of it."""
    options = Options(
        max_num_seqs=sequences, max_num_batched_tokens=batch, speculative_tokens=spec, prefix_caching=prefix
    )
    made = estimate(files(name), options)
    assert made.weights.bytes > 0
    assert all(getattr(made.overhead, part) >= 0 for part in made.overhead.__slots__)
    assert made.overhead.total_bytes > 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(0, 40), st.integers(1, 131072), st.integers(1, 8))
def test_more_reserve_never_admits_more(reserve: int, more: int, context: int, sequences: int) -> None:
    """What does not fit beside a small reserve does not fit beside a larger one."""
    node = facts("dgx-spark", name="box", reserve_bytes=reserve * GIB)
    engine = {"model": "Qwen/Qwen3-8B", "context": context, "sequences": sequences}
    wanted = want("one", tower({"one": engine}), files(QWEN), {"box": node})
    less = solve((wanted,), {"box": node}).fits
    assert less or not solve((wanted,), {"box": replace(node, reserve_bytes=(reserve + more) * GIB)}).fits


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200_000), st.integers(0, 100_000), st.integers(1, 16))
def test_more_context_never_fits_better(context: int, more: int, sequences: int) -> None:
    """A plan that fits at a length fits at every shorter one."""
    node = facts("rtx-pro-6000", name="box")

    def fits(length: int) -> bool:
        engine = {"model": "Qwen/Qwen3-8B", "context": length, "sequences": sequences}
        return solve((want("one", tower({"one": engine}), files(QWEN), {"box": node}),), {"box": node}).fits

    assert fits(context) or not fits(context + more)


def _paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if not isinstance(value, dict):
        return []
    return [path for key, inner in value.items() for path in ((*above, key), *_paths(inner, (*above, key)))]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_to_a_config_is_an_answer_or_a_plan_error(data: st.DataObject) -> None:
    """One field of any model replaced by anything: an answer without negative numbers, or a PlanError."""
    name = data.draw(st.sampled_from(NAMES))
    values = config(name)
    path = data.draw(st.sampled_from(_paths(values)))
    holder = values
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = data.draw(JUNK)
    question = Question(ModelFiles(name, values), Options(), None, 4096, 4 * GIB)
    try:
        found = as_json(fit(question), question)
    except PlanError:
        return
    assert found["weights_bytes"] > 0
    assert all(
        found[key] >= 0
        for key in ("kv_bytes_per_request", "num_blocks", "kv_cache_tokens", "overhead_bytes", "block_size")
    )


@pytest.mark.parametrize("chip", catalogue(), ids=lambda chip: chip.name)
def test_every_chip_has_memory_bandwidth_and_source(chip: Any) -> None:
    """The catalogue is complete, and found by name and by alias."""
    assert chip.memory_bytes > GIB
    assert chip.bandwidth > 0
    assert chip.source
    for name in (chip.name, *chip.aliases):
        assert facts(name).hardware == chip.name


def test_a_mac_keeps_free_what_metal_does_not_map() -> None:
    """107.52 of 128 GiB, unless the tower file says otherwise."""
    mac = facts("mac-m4-max-128")
    assert (mac.memory_total_bytes - mac.reserve) / GIB == pytest.approx(107.52)
    assert facts("mac-m4-max-128", reserve_bytes=8 * GIB).reserve == 8 * GIB


@pytest.mark.parametrize("text", ["", "0", "-3 GiB", "0x h100", "dgx", "24 Gib b", "x"])
def test_unknown_hardware_is_refused(text: str) -> None:
    """Neither a chip nor a size."""
    with pytest.raises(PlanError, match="hardware"):
        facts(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [("0.27.1", (0, 27, 1)), ("v0.20", (0, 20, 0)), ("~0.28-0.29", (0, 28, 0)), ("nightly", (0, 33, 0))],
)
def test_versions_are_read_as_people_write_them(text: str, number: tuple[int, int, int]) -> None:
    """Release, tag, approximation and nightly."""
    assert rules(text).number == number
