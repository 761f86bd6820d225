"""Figures of the H200 measurements that no whole row gives: capacities under each caching mode, and silent defaults."""

from __future__ import annotations

from typing import Any

import pytest

from lmtower.plan.estimate import Options, estimate
from lmtower.plan.kv import KvLayout
from lmtower.plan.model import ModelFiles
from tests.plan.shapes import GIB, NANO, SUPER, config, estimated

QWEN36 = "nvidia__Qwen3.6-35B-A3B-NVFP4"
MEASURED: list[tuple[str, dict[str, Any], int, int, float]] = [
    # model, flags, request length, blocks that the log's concurrency means, concurrency
    (SUPER, {"prefix_caching": False}, 204_800, 1688, 56.27),
    (SUPER, {"mamba_cache_mode": "all"}, 204_800, 1688, 11.25),
    (NANO, {"prefix_caching": False}, 262_144, 8891, 132.7),
    (NANO, {"mamba_cache_mode": "all"}, 262_144, 8790, 27.9),
    (QWEN36, {"prefix_caching": False, "kv_cache_dtype": "bf16"}, 131_072, 5190, 40.55),
    (QWEN36, {"mamba_cache_mode": "align", "kv_cache_dtype": "bf16"}, 131_072, 5190, 39.62),
]


@pytest.mark.parametrize(("name", "flags", "length", "blocks", "concurrency"), MEASURED)
def test_caching_modes_cost_what_was_measured(
    name: str, flags: dict[str, Any], length: int, blocks: int, concurrency: float
) -> None:
    """Nemotron's ``all`` mode leaves a fifth of the concurrency, ``align`` costs Qwen3.6 two in a hundred."""
    cache = estimated(name, version="0.25.1", **flags).cache
    assert cache.concurrency(blocks, length) == pytest.approx(concurrency, rel=0.002)


def test_nano_pools_of_both_modes_are_the_same_memory() -> None:
    """``all`` rounds the block up to the scan's chunk: 4,224 instead of 4,176 tokens, 1.1 % fewer blocks."""
    plain = estimated(NANO, version="0.25.1", prefix_caching=False).cache
    every = estimated(NANO, version="0.25.1", mamba_cache_mode="all").cache
    assert (plain.block_size, every.block_size) == (4176, 4224)
    assert every.blocks(8891 * plain.bytes_per_block) in (8789, 8790)


def test_short_requests_take_whole_blocks() -> None:
    """One of 100 tokens takes 6 blocks of 32.5 MiB on the 120B."""
    cache = estimated(SUPER, version="0.25.1", prefix_caching=False).cache
    assert cache.blocks_per_request(100) == 6
    assert isinstance(cache, KvLayout)
    assert cache.bytes_per_block == 34_078_720


def test_super_without_its_quantisation_is_what_a_stub_loads() -> None:
    """A quantised checkpoint whose layers are not listed loads unquantised: 224.8 GiB instead of 68.1."""
    plain = {key: value for key, value in config(SUPER).items() if key != "quantization_config"}
    made = estimate(ModelFiles("stub", plain), Options(version="0.25.1"))
    assert made.weights.bytes / GIB == pytest.approx(224.8, rel=0.005)


def test_cache_dtype_follows_the_checkpoint() -> None:
    """fp8 where the quantisation declares it (120B, Gemma 4 NVFP4), bf16 elsewhere."""
    declared = (SUPER, "nvidia__Gemma-4-26B-A4B-NVFP4", NANO)
    assert {estimated(name).kv_cache_dtype for name in declared} == {"fp8"}
    assert estimated("Qwen__Qwen3-8B").kv_cache_dtype == "bf16"
