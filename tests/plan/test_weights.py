"""Weights: by declared layout, by the checkpoint's own tensors, by its total size."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from lmtower.errors import PlanError
from lmtower.plan.estimate import Options, estimate
from lmtower.plan.quantisation import read_layout
from lmtower.plan.sources import read_path
from lmtower.plan.weights import allocated
from tests.plan.shapes import GIB, QWEN, SUPER, config, estimated, files


@pytest.mark.parametrize(
    ("name", "options", "gib"),
    [
        (QWEN, {}, 15.268),
        ("meta-llama__Meta-Llama-3.1-8B", {}, 14.989),
        ("google__gemma-4-26B-A4B", {}, 48.5),
        ("nvidia__Qwen3.6-35B-A3B-NVFP4", {"speculative_tokens": 2}, 21.93),
        ("nvidia__Qwen3.6-27B-NVFP4", {"speculative_tokens": 2}, 20.57),
        ("openai__gpt-oss-120b", {"version": "0.10.1"}, 65.965),
        ("openai__gpt-oss-120b", {"version": "0.14.1"}, 64.38),
        ("local__Qwen2.5-3B-Instruct-FP8-Dynamic", {}, 3.23),
        ("Qwen__Qwen3-30B-A3B", {}, 56.87),
        (SUPER, {}, 68.1),
    ],
)
def test_loaded_weights_are_the_logged_ones(name: str, options: dict[str, Any], gib: float) -> None:
    """Within one per cent of "Model loading took"."""
    assert estimated(name, **options).weights.bytes / GIB == pytest.approx(gib, rel=0.01)


@pytest.mark.parametrize(
    ("size", "taken"),
    [
        (10 * 2**20 - 1, 10 * 2**20 - 1),
        (10 * 2**20, 10 * 2**20),
        (11 * 2**20 - 1, 11 * 2**20 - 1),
        (11 * 2**20, 12 * 2**20),
        (26 * 2**20 + 1, 28 * 2**20),
        (0, 0),
    ],
)
def test_large_tensors_are_rounded_up_to_two_mib(size: int, taken: int) -> None:
    """From 10 MiB on, unless more than 1 MiB would stay over; over 20 MiB vLLM forbids the cut while it loads."""
    assert allocated(size) == taken


def test_experts_of_gemma_nvfp4_are_quantised_though_its_mlp_is_not() -> None:
    """``layers.0.mlp*`` in the exclusions does not cover ``layers.0.experts``."""
    parts = estimated("nvidia__Gemma-4-26B-A4B-NVFP4").weights.parts
    assert parts["experts"] / GIB == pytest.approx(42.54 * 0.5625 / 2, rel=0.01)
    assert parts["mlp"] / GIB == pytest.approx(1.05, rel=0.02)


def test_draft_layers_count_only_with_speculative_decoding() -> None:
    """The 120B's draft is 5.48 GiB of bf16."""
    off, on = estimated(SUPER), estimated(SUPER, speculative_tokens=1)
    assert "draft" not in off.weights.parts
    assert on.weights.parts["draft"] / GIB == pytest.approx(5.48, abs=0.02)


def test_stub_is_uncertain_and_says_so() -> None:
    """A quantisation file without layers gives a guess with room for its error."""
    made = estimated(SUPER)
    assert made.layout is not None
    assert made.layout.stub
    assert made.weights.uncertainty == 0.03
    assert made.overhead.margin_bytes > 0.03 * made.weights.bytes


def test_two_ranks_halve_the_weights() -> None:
    """Tensor parallelism divides all but norms, routers and rope."""
    one, two = estimated("Qwen__Qwen3-32B").weights.bytes, estimated("Qwen__Qwen3-32B", tensor_parallel=2).weights.bytes
    assert two == pytest.approx(one / 2, rel=0.01)


def test_ranks_that_do_not_divide_the_heads_are_refused() -> None:
    """Three GPUs cannot share 32 heads."""
    with pytest.raises(PlanError, match="3 GPUs do not divide 32 heads"):
        estimated(QWEN, tensor_parallel=3)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (SUPER, "fp8"),
        ("nvidia__Gemma-4-26B-A4B-NVFP4", "fp8"),
        ("nvidia__Qwen3.6-27B-NVFP4", "fp8"),
        ("nvidia__Qwen3.6-35B-A3B-NVFP4", "bf16"),
        (QWEN, "bf16"),
    ],
)
def test_auto_cache_dtype_follows_the_checkpoint(name: str, dtype: str) -> None:
    """``auto`` is fp8 where the declaration that vLLM reads says so: config.json before hf_quant_config.json."""
    assert estimated(name).kv_cache_dtype == dtype


@pytest.mark.parametrize(
    ("quant", "per_weight"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 0.5 + 2 / 128),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 0.5 + 2.5 / 128),
        ({"quant_method": "auto-round", "bits": 8, "group_size": 128}, 1 + 2 / 128),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 1 + 4 / 16384),
        ({"quant_method": "fp8"}, 1.0),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 0.5 + 4 / 64),
        ({"quant_algo": "NVFP4", "group_size": 16, "ignore": ["lm_head"]}, 0.5625),
        ({"quant_algo": "FP8", "ignore": ["lm_head"]}, 1.0),
        ({"quant_method": "modelopt", "quant_algo": "MXFP8", "ignore": ["lm_head"]}, 1 + 1 / 32),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"weights": {"num_bits": 4, "type": "int", "group_size": 32}}},
            },
            0.5 + 2 / 32,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"a": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}},
            },
            0.5625,
        ),
    ],
)
def test_layout_costs_what_its_format_says(quant: dict[str, Any], per_weight: float) -> None:
    """Bytes a weight of the MLP, for each way of declaring a quantisation."""
    layout = read_layout({**config(QWEN), "quantization_config": quant}, None)
    form = layout.of(("layers.0.mlp.down_proj",))
    assert form.bytes(4096, 12288) / (4096 * 12288) == pytest.approx(per_weight, rel=0.001)


def test_exclusions_know_stars_regexes_and_bare_names() -> None:
    """The three ways in which releases name what stays in 16 bit."""
    quant = {
        "quant_method": "compressed-tensors",
        "config_groups": {"a": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}},
        "ignore": ["re:.*self_attn.*", "model.layers.1.mlp*", "gate"],
    }
    layout = read_layout({"quantization_config": quant}, None)
    names = ["layers.0.self_attn.q_proj", "layers.1.mlp.up_proj", "layers.2.mlp.gate", "layers.2.mlp.gate_proj"]
    assert [layout.of((name,)).name for name in names] == ["bf16", "bf16", "bf16", "fp8"]


@pytest.mark.parametrize(
    "quant",
    [
        "x",
        {"quant_method": "gptq", "bits": 77},
        {"quant_method": "fp8", "weight_block_size": [0, 1]},
        {"quant_method": "fp8", "ignore": 3},
    ],
)
def test_wrong_declaration_is_named(quant: Any) -> None:
    """A quantization_config of the wrong kind is a PlanError with the field."""
    with pytest.raises(PlanError, match="quantization_config"):
        read_layout({"quantization_config": quant}, None)


def _write_safetensors(path: Path, tensors: dict[str, int]) -> None:
    at, header = 0, {}
    for name, size in tensors.items():
        header[name] = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def _checkpoint(folder: Path, layers: int = 2) -> int:
    """A small Qwen3 with headers only; returns the bytes of its tensors."""
    small = {
        **config(QWEN),
        "num_hidden_layers": layers,
        "hidden_size": 512,
        "head_dim": 64,
        "intermediate_size": 1024,
        "vocab_size": 1024,
    }
    (folder / "config.json").write_text(json.dumps({**small, "num_attention_heads": 8, "num_key_value_heads": 8}))
    tensors = {"model.embed_tokens.weight": 1024 * 512 * 2, "lm_head.weight": 1024 * 512 * 2, "model.norm.weight": 1024}
    for index in range(layers):
        for name, size in {
            "self_attn.q_proj": 512,
            "self_attn.k_proj": 512,
            "self_attn.v_proj": 512,
            "self_attn.o_proj": 512,
        }.items():
            tensors[f"model.layers.{index}.{name}.weight"] = size * 512 * 2
        for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
            tensors[f"model.layers.{index}.{name}.weight"] = 1024 * 512 * 2
    tensors["mtp.layers.0.mlp.up_proj.weight"] = 1024
    _write_safetensors(folder / "model.safetensors", tensors)
    return sum(tensors.values()) - 1024


def test_headers_give_the_loaded_size(tmp_path: Path) -> None:
    """Tensors of the checkpoint are summed without drafts, plus the rope table."""
    size = _checkpoint(tmp_path)
    made = estimate(read_path(tmp_path), Options())
    rope = 40960 * 64 * 2
    assert made.weights.basis == "safetensors headers"
    assert made.weights.bytes == size + rope


def test_headers_and_shape_agree(tmp_path: Path) -> None:
    """Both ways to the same model differ by less than half a per cent."""
    _checkpoint(tmp_path)
    by_headers = estimate(read_path(tmp_path), Options()).weights.bytes
    by_shape = estimate(
        read_path(tmp_path / "config.json").__class__("x", read_path(tmp_path).config), Options()
    ).weights.bytes
    assert by_headers == pytest.approx(by_shape, rel=0.005)


def test_truncated_safetensors_is_named(tmp_path: Path) -> None:
    """A header that promises more than the file holds is an error with the file's name."""
    _checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 10**6) + b"{}")
    with pytest.raises(PlanError, match=r"model\.safetensors: not a readable"):
        read_path(tmp_path)


def test_total_of_the_index_stands_in_for_a_stub(tmp_path: Path) -> None:
    """The 120B's index gives 80,317,948,856 B; without the draft: within half a per cent of the logged 69.62 GiB."""
    (tmp_path / "config.json").write_text(json.dumps(config(SUPER)))
    (tmp_path / "hf_quant_config.json").write_text(
        json.dumps({"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}})
    )
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 80317948856}, "weight_map": {}})
    )
    made = estimate(read_path(tmp_path), Options())
    assert made.weights.bytes / GIB == pytest.approx(69.62, rel=0.005)


def test_stub_beside_a_renamed_config_is_found() -> None:
    """``NAME.hf_quant_config.json`` belongs to ``NAME.json``."""
    assert files(SUPER).quant_file is not None
