"""KV cache geometry: blocks, groups and requests, against numbers that logs and sources give."""

from __future__ import annotations

from typing import Any

import pytest

from lmtower.errors import PlanError
from lmtower.plan.kv import KvLayout, KvOptions, layout
from lmtower.plan.read import read_config
from lmtower.plan.versions import rules
from tests.plan.shapes import NANO, QWEN, SUPER, config, estimated


def geometry(name: str, version: str = "0.27.1", **options: Any) -> KvLayout:
    """The cache of a model."""
    return layout(read_config(config(name)), KvOptions(rules(version), **options))


@pytest.mark.parametrize(
    ("name", "options", "block"),
    [
        (SUPER, {"dtype": "fp8"}, 8320),
        (SUPER, {"dtype": "fp8", "speculative_tokens": 3, "draft": True}, 8432),
        (NANO, {"dtype": "fp8"}, 4176),
        (NANO, {"dtype": "bf16"}, 2096),
        (NANO, {"dtype": "fp8", "mamba_cache_mode": "all"}, 4224),
        ("nvidia__Qwen3.6-35B-A3B-NVFP4", {"dtype": "fp8"}, 2096),
        ("nvidia__Qwen3.6-35B-A3B-NVFP4", {"dtype": "fp8", "speculative_tokens": 2}, 2128),
        ("nvidia__Qwen3.6-35B-A3B-NVFP4", {"dtype": "bf16"}, 1056),
        ("nvidia__Qwen3.6-35B-A3B-NVFP4", {"dtype": "bf16", "speculative_tokens": 3}, 1072),
        ("nvidia__Qwen3.6-27B-NVFP4", {"dtype": "fp8"}, 1568),
        ("nvidia__Qwen3.6-27B-NVFP4", {"dtype": "fp8", "speculative_tokens": 3}, 1600),
        ("nvidia__Qwen3.6-27B-NVFP4", {"dtype": "nvfp4", "speculative_tokens": 3}, 2848),
        ("Qwen__Qwen3.5-122B-A10B", {"dtype": "bf16"}, 2096),
        (QWEN, {"dtype": "bf16"}, 16),
        ("google__gemma-4-26B-A4B", {"dtype": "bf16"}, 16),
        ("deepseek-ai__DeepSeek-V3", {"dtype": "bf16"}, 64),
    ],
)
def test_block_is_the_logged_one(name: str, options: dict[str, Any], block: int) -> None:
    """The attention block of a hybrid grows until its page holds a state."""
    assert geometry(name, **options).block_size == block


def test_super_with_six_gib_gives_the_logged_pool() -> None:
    """Nemotron-3-Super, fp8, 6 GiB: 189 blocks, 42 a request, 4.50 times 262,144 tokens, 1,179,648 in the log."""
    cache = geometry(SUPER, dtype="fp8")
    blocks = cache.blocks(6 * 1024**3)
    assert (cache.bytes_per_block, blocks, cache.blocks_per_request(262144)) == (34_078_720, 189, 42)
    assert cache.concurrency(blocks, 262144) == 4.5
    assert cache.tokens(blocks, 262144) == 1_179_648


@pytest.mark.parametrize(
    ("version", "mode", "spec", "blocks"),
    [
        ("0.27.1", "none", 0, 32 + 5 * 1),
        ("0.27.1", "align", 0, 32 + 5 * 2),
        ("0.27.1", "all", 0, 32 * 6),
        ("0.33.0", "align", 0, 32 + 5 * 3),
        ("0.27.1", "align", 1, 32 + 5 * 3),
    ],
)
def test_state_pages_of_a_request_follow_mode_and_version(version: str, mode: str, spec: int, blocks: int) -> None:
    """Mamba-2 pages a request: 1, 2 or one a block, and one more in 0.33; a draft adds its own."""
    cache = geometry(SUPER, version, dtype="fp8", mamba_cache_mode=mode, speculative_tokens=spec, draft=spec > 0)
    assert cache.blocks_per_request(262144) == blocks


def test_sliding_window_holds_batches_in_flight() -> None:
    """Gemma-4: one batch in 0.22, two since 0.27 with async scheduling."""
    old = geometry("google__gemma-4-26B-A4B", "0.22.0", max_num_batched_tokens=8192)
    new = geometry("google__gemma-4-26B-A4B", "0.27.1", max_num_batched_tokens=8192)
    assert old.blocks_per_request(32768) == 1024 + 5 * 577
    assert new.blocks_per_request(32768) == 1024 + 5 * 1089


def test_draft_layer_joins_the_full_attention_bucket() -> None:
    """Multi-token prediction makes groups of 11 of Qwen3.6-35B's 10 full layers."""
    cache = geometry("nvidia__Qwen3.6-35B-A3B-NVFP4", dtype="fp8", speculative_tokens=2, draft=True)
    assert (len(cache.groups), cache.groups[0].layers) == (4, 11)


def test_eagle_head_adds_one_layer_to_a_dense_model() -> None:
    """A dense model with speculative decoding and no draft layers of its own keeps 33 layers, not 32."""
    plain = geometry("meta-llama__Meta-Llama-3.1-8B")
    eagle = geometry("meta-llama__Meta-Llama-3.1-8B", draft=True)
    assert eagle.bytes_per_block * 32 == plain.bytes_per_block * 33


def test_close_buckets_share_the_larger_size() -> None:
    """gpt-oss with an EAGLE head pads 18 sliding and 19 full layers to 19 each."""
    cache = geometry("openai__gpt-oss-120b", draft=True)
    assert [(group.layers, group.padding) for group in cache.groups] == [(19, 1), (19, 0)]


def test_log_of_old_versions_means_blocks() -> None:
    """Up to 0.20.0 "GPU KV cache size" is blocks // groups × block, whatever the length."""
    cache = geometry("nvidia__Qwen3.6-27B-NVFP4", "0.20.0", dtype="fp8")
    assert cache.tokens(139, 32768) == cache.tokens(139, 1024) == 53_312


def test_fewer_kv_heads_than_ranks_are_copied() -> None:
    """Two KV heads over eight ranks cost one head a rank."""
    assert geometry("Qwen__Qwen3-30B-A3B", tensor_parallel=8).bytes_per_block == 48 * 16 * 1 * 256 * 2


def test_latent_attention_does_not_depend_on_ranks() -> None:
    """MLA keeps 576 elements a token and layer on every rank."""
    one, eight = geometry("deepseek-ai__DeepSeek-V3"), geometry("deepseek-ai__DeepSeek-V3", tensor_parallel=8)
    assert one.bytes_per_block == eight.bytes_per_block == 61 * 64 * 576 * 2


def test_nvfp4_cache_is_refused_with_latent_attention() -> None:
    """vLLM refuses the pair, and so does the planner, naming what works."""
    with pytest.raises(PlanError, match="Use fp8"):
        geometry("deepseek-ai__DeepSeek-V3", dtype="nvfp4")


def test_unknown_dtype_is_refused_with_the_known_ones() -> None:
    """A typo in kv_cache_dtype lists what may be written."""
    with pytest.raises(PlanError, match="bf16"):
        geometry(QWEN, dtype="fp7")


def test_longest_request_is_the_one_that_vllm_names() -> None:
    """Qwen3.8-27B on an L40S: "estimated maximum model length is 112896" for 147 blocks."""
    cache = geometry("Qwen__Qwen3.5-27B", "0.26.0", mamba_cache_mode="none")
    assert cache.longest(147, 131072) == 112_896
    assert cache.longest(0, 131072) == 0


def test_encoder_keeps_no_cache() -> None:
    """An embedding model has no blocks and needs no pool."""
    made = estimated("nomic-ai__nomic-embed-text-v1.5")
    assert not made.has_cache
    assert made.pool_bytes(2048, 8) == 0


def test_pool_has_room_for_more_than_one_request() -> None:
    """A single sequence gets 1.1 times its need, because pools at 1.0 hang."""
    made = estimated(SUPER, kv_cache_dtype="fp8")
    need = made.cache.bytes_per_request(200_000)
    assert made.pool_bytes(200_000, 1) > 1.1 * need
    assert made.pool_bytes(200_000, 4) == 4 * need + made.cache.bytes_per_block


@pytest.mark.parametrize(
    ("name", "version", "spec", "fp8", "bf16"),
    [
        (SUPER, "0.27.1", 0, 1.11, 1.87),
        (SUPER, "0.27.1", 1, 1.40, 2.26),
        (SUPER, "0.27.1", 3, 1.77, 2.65),
        (SUPER, "0.33.0", 0, 1.27, 2.03),
        (SUPER, "0.33.0", 1, 1.58, 2.44),
        (SUPER, "0.33.0", 3, 1.95, 2.83),
        ("Qwen__Qwen3-VL-2B-Instruct", "0.27.1", 0, 10.68, 21.36),
        ("Qwen__Qwen3-VL-8B-Instruct", "0.27.1", 0, 13.73, 27.47),
        ("Qwen__Qwen3-VL-30B-A3B-Instruct", "0.27.1", 0, 9.16, 18.31),
        ("Qwen__Qwen3-VL-32B-Instruct", "0.27.1", 0, 24.41, 48.83),
    ],
)
def test_request_of_200k_tokens_costs_what_its_family_costs(
    name: str, version: str, spec: int, fp8: float, bf16: float
) -> None:
    """GiB of one request of 200,000 tokens: cheap on hybrids, more than the weights on a dense vision model."""
    for dtype, gib in (("fp8", fp8), ("bf16", bf16)):
        cache = geometry(name, version, dtype=dtype, speculative_tokens=spec, draft=spec > 0)
        assert cache.bytes_per_request(200_000) / 1024**3 == pytest.approx(gib, abs=0.006)


def test_nano_in_all_mode_keeps_a_fifth() -> None:
    """H200, 0.25.1: 132.7 requests of 262,144 tokens without prefix caching, 27.9 in ``all`` mode."""
    off = geometry(NANO, "0.25.1", dtype="fp8", mamba_cache_mode="none")
    every = geometry(NANO, "0.25.1", dtype="fp8", mamba_cache_mode="all")
    pool = 8891 * off.bytes_per_block
    assert off.concurrency(off.blocks(pool), 262144) == pytest.approx(132.7, abs=0.05)
    assert every.concurrency(every.blocks(pool), 262144) == pytest.approx(27.9, abs=0.05)


def test_super_in_all_mode_keeps_a_fifth() -> None:
    """H200, 0.25.1: 56.27 requests of 204,800 tokens without prefix caching, 11.25 in ``all`` mode."""
    off = geometry(SUPER, "0.25.1", dtype="fp8", mamba_cache_mode="none")
    every = geometry(SUPER, "0.25.1", dtype="fp8", mamba_cache_mode="all")
    assert off.concurrency(1688, 204800) == pytest.approx(56.27, abs=0.005)
    assert every.concurrency(1688, 204800) == pytest.approx(11.25, abs=0.005)


def test_qwen_hybrid_loses_little_to_aligned_caching() -> None:
    """H200, 0.25.1: Qwen3.6-35B from 40.55 to 39.62 requests of 131,072 tokens."""
    off = geometry("nvidia__Qwen3.6-35B-A3B-NVFP4", "0.25.1", mamba_cache_mode="none")
    on = geometry("nvidia__Qwen3.6-35B-A3B-NVFP4", "0.25.1", mamba_cache_mode="align")
    blocks = round(40.55 * off.blocks_per_request(131072))
    assert on.concurrency(blocks, 131072) == pytest.approx(39.62, abs=0.02)


def test_compressed_cache_of_deepseek_v4_is_the_one_vllm_builds() -> None:
    """22 pages of 37,440 bytes, 21 of 8,640 and 20 of 1,728 a block; windows and states cost more than the keys."""
    cache = estimated("deepseek-ai__DeepSeek-V4-Flash", kv_cache_dtype="fp8", version="0.25.1").cache
    assert cache.bytes_per_block == 22 * 37_440 + 21 * 8_640 + 20 * 1_728
    assert cache.block_size == 256
    assert cache.blocks_per_request(262_144) == 3993


def test_compressed_cache_in_16_bit_is_larger() -> None:
    """bf16 keys are 1,024 bytes a token instead of 584."""
    packed, plain = (
        estimated("deepseek-ai__DeepSeek-V4-Flash", kv_cache_dtype=dtype, version="0.25.1").cache
        for dtype in ("fp8", "bf16")
    )
    assert plain.bytes_per_request(65_536) > packed.bytes_per_request(65_536)
