"""Absurd configurations: a PlanError that names the field, never a traceback, never a silent zero."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lmtower.errors import PlanError
from lmtower.plan.estimate import Options, estimate
from lmtower.plan.model import ModelFiles
from lmtower.plan.read import read_config
from lmtower.plan.sources import find_model, read_path
from lmtower.plan.weights import CheckpointTensor
from tests.plan.shapes import NANO, QWEN, SUPER, config


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        (QWEN, "num_attention_heads", 0),
        (QWEN, "num_hidden_layers", -1),
        (QWEN, "num_hidden_layers", 10**9),
        (QWEN, "num_hidden_layers", "36"),
        (QWEN, "num_hidden_layers", None),
        (QWEN, "hidden_size", 4096.5),
        (QWEN, "hidden_size", float("nan")),
        (QWEN, "hidden_size", float("inf")),
        (QWEN, "hidden_size", True),
        (QWEN, "hidden_size", []),
        (QWEN, "vocab_size", 10**18),
        (QWEN, "num_key_value_heads", 5),
        (QWEN, "intermediate_size", {}),
        (QWEN, "max_position_embeddings", 0),
        (QWEN, "tie_word_embeddings", "no"),
        (QWEN, "architectures", "Qwen3ForCausalLM"),
        (QWEN, "model_type", 7),
        (NANO, "hybrid_override_pattern", "MEX"),
        (NANO, "hybrid_override_pattern", None),
        (NANO, "num_hidden_layers", 51),
        (NANO, "mamba_num_heads", 0),
        (SUPER, "n_routed_experts", -5),
        (SUPER, "ssm_state_size", None),
        ("openai__gpt-oss-120b", "layer_types", ["full_attention"]),
        ("openai__gpt-oss-120b", "layer_types", ["magic"] * 36),
        ("openai__gpt-oss-120b", "sliding_window", "128"),
        ("deepseek-ai__DeepSeek-V3", "qk_rope_head_dim", 0),
    ],
)
def test_absurd_field_is_named(name: str, field: str, value: Any) -> None:
    """The message and ``error.field`` name what is wrong."""
    with pytest.raises(PlanError) as caught:
        read_config({**config(name), field: value})
    assert field in str(caught.value)
    assert caught.value.field is not None


def test_missing_field_is_named() -> None:
    """A field that is not there is said to be missing."""
    values = config(QWEN)
    del values["vocab_size"]
    with pytest.raises(PlanError, match="vocab_size: missing"):
        read_config(values)


def test_nested_field_is_named_with_its_section() -> None:
    """Fields of the language model inside a vision-language model carry ``text_config.``."""
    values = config("Qwen__Qwen3-VL-8B-Instruct")
    values["text_config"] = {**values["text_config"], "num_hidden_layers": 0}
    with pytest.raises(PlanError, match=r"text_config\.num_hidden_layers"):
        read_config(values)


@pytest.mark.parametrize("values", [{}, {"hidden_size": 1}, [], "text", None])
def test_no_configuration_at_all_is_refused(values: Any) -> None:
    """Something else than a model's config.json is refused."""
    with pytest.raises(PlanError):
        read_config(values)


def _foreign(**more: Any) -> dict[str, Any]:
    return {**config(QWEN), "architectures": ["MysteryForCausalLM"], "model_type": "mystery", **more}


def test_unknown_architecture_without_sizes_is_refused() -> None:
    """Nothing is invented for an architecture that is not known."""
    with pytest.raises(PlanError, match="MysteryForCausalLM"):
        read_config(_foreign())


def test_unknown_architecture_with_sizes_is_planned_with_doubt() -> None:
    """The size of the tensors is enough for weights, and the doubt is a number."""
    made = estimate(ModelFiles("mystery", _foreign(), total_size=10 * 1024**3), Options())
    assert made.weights.bytes == 10 * 1024**3
    assert made.weights.uncertainty == 0.10
    assert made.overhead.margin_bytes >= 1024**3


def _checkpoint(layers: int = 3) -> tuple[CheckpointTensor, ...]:
    """Tensors of a decoder with names of its own: 1,000 words, width 64, keys and values of 16."""
    shapes = {"wq.weight": (64, 64), "wk.weight": (16, 64), "wv.weight": (16, 64), "w1.weight": (256, 64)}
    names = {f"net.blocks.{index}.{name}": shape for index in range(layers) for name, shape in shapes.items()}
    names |= {"net.tok_embeddings.weight": (1000, 64), "output.weight": (1000, 64)}
    return tuple(CheckpointTensor(name, 2 * math.prod(shape), shape, "BF16") for name, shape in names.items())


def test_unknown_architecture_without_any_field_is_planned_from_its_tensors() -> None:
    """Layers, widths and vocabulary are read off the headers; keys and values of 16 in bf16 cost 64 bytes a layer."""
    files = ModelFiles("mystery", {"architectures": ["Mystery"], "model_type": "mystery"}, tensors=_checkpoint())
    made = estimate(files, Options())
    assert made.weights.bytes == sum(tensor.bytes for tensor in _checkpoint())
    assert made.weights.uncertainty == 0.10
    assert made.cache.bytes_per_request(16) == 3 * 16 * 64
    assert made.trained_context == 8192


def test_unknown_architecture_with_nameless_tensors_is_refused() -> None:
    """Sizes alone do not tell what a token keeps."""
    files = ModelFiles("mystery", {"model_type": "mystery"}, tensors=(CheckpointTensor("a", 64, (4, 8), "BF16"),))
    with pytest.raises(PlanError, match="neither an embedding nor numbered layers"):
        estimate(files, Options())


def test_known_architecture_with_a_missing_field_stays_refused() -> None:
    """Tensors do not excuse a broken config.json of a model that is known."""
    broken = {key: value for key, value in config(QWEN).items() if key != "hidden_size"}
    with pytest.raises(PlanError, match="hidden_size"):
        estimate(ModelFiles("broken", broken, tensors=_checkpoint()), Options())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"hidden_size": 40', "line 1, column 19: not JSON"),
        ("[]", "list where a JSON object is expected"),
        ("", "not JSON"),
        ("\udcff".encode("utf-8", "surrogateescape").decode("latin-1"), "not JSON"),
        ("[" * 100_000, "cannot be read|not JSON"),
    ],
)
def test_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    """Truncated, empty, deep and foreign files are errors with the file's name."""
    path = tmp_path / "config.json"
    path.write_text(text, "utf-8")
    with pytest.raises(PlanError, match=message):
        read_path(path)


@pytest.mark.parametrize("total", ["many", -1, True, 2**70])
def test_absurd_index_is_named(tmp_path: Path, total: Any) -> None:
    """A total size that is none is an error."""
    (tmp_path / "config.json").write_text(json.dumps(config(QWEN)))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}}))
    with pytest.raises(PlanError, match="total_size"):
        read_path(tmp_path)


@pytest.mark.parametrize("reference", ["./nothing", "nothing.json", "word", "a/b/c", "x" * 5000])
def test_unknown_reference_is_refused(reference: str, tmp_path: Path) -> None:
    """A model that is nowhere is refused without asking the network."""
    with pytest.raises(PlanError):
        find_model(reference, base=tmp_path, environ={"HF_HOME": str(tmp_path)}, offline=True)


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    """A folder without config.json and without .gguf says so."""
    with pytest.raises(PlanError, match=r"no config\.json"):
        read_path(tmp_path)
