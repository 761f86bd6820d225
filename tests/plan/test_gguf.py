"""GGUF models: metadata written by the ``gguf`` package, read by ours."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from lmtower.errors import PlanError
from lmtower.plan.estimate import Options, estimate
from lmtower.plan.fit import Question, fit
from lmtower.plan.gguf_read import read_gguf
from lmtower.plan.hardware import facts
from lmtower.plan.planner import plan
from lmtower.plan.sources import read_path
from tests.plan.shapes import tower


def write(path: Path, *, architecture: str = "llama", window: int | None = None, context: int = 4096) -> Path:
    """A small GGUF: two layers, two KV heads of 32, one F16 and one Q8_0 tensor."""
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(context)
    writer.add_embedding_length(128)
    writer.add_block_count(2)
    writer.add_feed_forward_length(256)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    if window:
        writer.add_sliding_window(window)
        writer.add_sliding_window_pattern([True, False])
    writer.add_token_list([f"token {index}" for index in range(6000)])
    writer.add_token_scores([0.5] * 6000)
    writer.add_tensor("token_embd.weight", numpy.zeros((6000, 128), dtype=numpy.float16))
    writer.add_tensor(
        "blk.0.ffn_up.weight", numpy.zeros((256, 136), dtype=numpy.uint8), raw_dtype=GGMLQuantizationType.Q8_0
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_gives_shape_and_sizes(tmp_path: Path) -> None:
    """Layers, heads, vocabulary and bytes; the vocabulary's arrays are stepped over."""
    model = read_gguf(write(tmp_path / "tiny.gguf"))
    assert (model.architecture, len(model.layers), model.vocab_size, model.context_length) == ("llama", 2, 6000, 4096)
    assert (model.layers[0].kv_heads, model.layers[0].key_dim) == (2, 32)
    assert model.file_bytes == 6000 * 128 * 2 + 256 * 136


def test_cache_is_contiguous(tmp_path: Path) -> None:
    """llama.cpp keeps context × sequences tokens in f16."""
    made = estimate(read_path(write(tmp_path / "tiny.gguf")), Options())
    assert made.pool_bytes(1000, 4) == 4 * 1000 * 2 * 2 * (32 + 32) * 2


def test_sliding_window_layers_hold_the_window(tmp_path: Path) -> None:
    """A window of 512 and a micro-batch, not the whole context."""
    model = read_gguf(write(tmp_path / "tiny.gguf", architecture="gemma3", window=512))
    assert [layer.window for layer in model.layers] == [512, None]
    made = estimate(read_path(tmp_path / "tiny.gguf"), Options())
    assert made.pool_bytes(4096, 1) == (1024 + 4096) * 2 * 64 * 2


def test_fit_and_plan_take_a_gguf(tmp_path: Path) -> None:
    """The same planner, with llama.cpp as runtime."""
    path = write(tmp_path / "tiny.gguf")
    answer = fit(Question(read_path(path), Options(max_num_seqs=2), facts("mac")))
    assert answer.fits
    made = plan(tower({"one": {"model": str(path), "context": 2048}}), models={"one": read_path(path)}).engine("one")
    assert (made.runtime, made.max_model_len, made.gpu_memory_utilization) == ("llamacpp", 2048, None)


def test_bundled_smollm_is_planned_without_its_file() -> None:
    """The laptop's model is in the catalogue."""
    made = plan(tower({"one": {"model": "bundled:smollm2"}})).engine("one")
    assert made.runtime == "llamacpp"
    assert made.weights_bytes == 96_576_768


def test_unknown_cache_type_is_refused(tmp_path: Path) -> None:
    """llama.cpp's own cache types are named."""
    with pytest.raises(PlanError, match="q8_0"):
        estimate(read_path(write(tmp_path / "tiny.gguf")), Options(kv_cache_dtype="nvfp4"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b"GGML" + b"\0" * 40,
        b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60),
    ],
)
def test_broken_file_is_refused(tmp_path: Path, data: bytes) -> None:
    """Truncated, foreign and absurd heads are errors with the file's name."""
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    with pytest.raises(PlanError, match=r"broken\.gguf|general\.architecture"):
        read_gguf(path)


def test_every_truncation_is_refused_or_read(tmp_path: Path) -> None:
    """Cut anywhere in the first kilobyte, a file is an error, never a crash."""
    whole = write(tmp_path / "tiny.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for cut in range(0, 600, 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(PlanError):
            read_gguf(path)
