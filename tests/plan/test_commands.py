"""``lmtower plan`` and ``lmtower fit`` as people and programs call them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lmtower.cli.app import main
from tests.plan.shapes import GIB, MODELS, NANO, SUPER

FIELDS = {
    "weights_bytes", "kv_cache_bytes", "kv_bytes_per_request", "block_size", "num_blocks", "kv_cache_tokens",
    "max_concurrency", "overhead_bytes", "fits", "reasons",
}  # fmt: skip

TOWER = """
nodes:
  spark: {hardware: dgx-spark, reserve: 12 GiB}
engines:
  nemotron: {model: nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4, context: 200k, sequences: 4}
  eyes: {model: Qwen/Qwen3-VL-8B-Instruct-FP8, context: 32k, sequences: 4}
personas:
  think: {engine: nemotron}
  look: {engine: eyes}
"""

LOG = """
INFO 11-23 10:00:00 [gpu_model_runner.py:4512] Model loading took 10.43 GiB memory and 41.2 seconds
INFO 11-23 10:01:00 [gpu_worker.py:540] Available KV cache memory: 9.00 GiB
INFO 11-23 10:01:00 [kv_cache_utils.py:1700] GPU KV cache size: 131,072 tokens
INFO 11-23 10:01:00 [kv_cache_utils.py:1705] Maximum concurrency for 32,000 tokens per request: 4.10x
INFO 11-23 10:02:00 [gpu_model_runner.py:6708] Graph capturing finished in 12 secs, took 0.42 GiB
"""


@pytest.fixture
def tower_file(tmp_path: Path) -> Path:
    """A tower file of two engines on one Spark."""
    path = tmp_path / "tower.yaml"
    path.write_text(TOWER)
    return path


def fit(capsys: pytest.CaptureFixture[str], name: str, *arguments: str) -> dict[str, Any]:
    """The object that ``lmtower fit --json`` prints."""
    main(["fit", str(MODELS / f"{name}.json"), "--json", *arguments])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_fit_prints_every_promised_field(capsys: pytest.CaptureFixture[str]) -> None:
    """The 120B with 6 GiB of fp8 cache: block 8320, 189 blocks, 4.50 times, 1,179,648 tokens."""
    found = fit(
        capsys, SUPER, "--kv-cache-dtype", "fp8", "--kv-cache-memory-bytes", "6442450944", "--max-model-len", "262144"
    )
    assert found.keys() >= FIELDS
    assert (found["block_size"], found["num_blocks"], found["kv_cache_tokens"]) == (8320, 189, 1_179_648)
    assert found["max_concurrency"] == 4.5
    assert found["kv_bytes_per_request"] == 42 * 34_078_720
    assert found["fits"] is True


def test_fit_takes_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    """All flags of the command at once."""
    flags = (
        "--kv-cache-dtype=fp8 --kv-cache-memory-bytes=8GiB --max-model-len=128k --max-num-seqs=8 "
        "--max-num-batched-tokens=4096 --num-speculative-tokens=2 --tensor-parallel-size=2 --no-prefix-caching "
        "--vllm-version=0.25.1 --hardware=2x h100"
    )
    found = fit(capsys, "nvidia__Qwen3.6-35B-A3B-NVFP4", *re.split(r" (?=--)", flags))
    assert (found["max_model_len"], found["max_num_seqs"], found["max_num_batched_tokens"]) == (128000, 8, 4096)
    assert (found["mamba_cache_mode"], found["tensor_parallel_size"], found["vllm_version"]) == ("none", 2, "0.25.1")
    assert found["num_speculative_tokens"] == 2
    assert found["weights_bytes"] < 13 * GIB


def test_fit_refuses_with_exit_code_2_and_still_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """A pool that cannot hold one request: fits is false, and the length that fits is named."""
    path = str(MODELS / "meta-llama__Meta-Llama-3.1-8B.json")
    assert main(["fit", path, "--kv-cache-memory-bytes", "3103113871", "--max-model-len", "29000", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is False
    assert "23664 fits" in found["reasons"][0]


def test_fit_takes_a_negative_pool_as_no_room(capsys: pytest.CaptureFixture[str]) -> None:
    """vLLM logs "-2.14 GiB" when nothing is left: nothing fits, and no byte is negative."""
    found = fit(capsys, "openai__gpt-oss-120b", "--kv-cache-memory-bytes=-2297807995")
    assert (found["fits"], found["kv_cache_bytes"], found["num_blocks"]) == (False, 0, 0)


def test_fit_solves_for_the_longest_context(capsys: pytest.CaptureFixture[str]) -> None:
    """``--context max`` on a card is what the memory holds; one block more would not fit."""
    found = fit(capsys, "Qwen__Qwen3-8B", "--hardware", "rtx-4090", "--context", "max")
    assert found["fits"]
    assert found["max_model_len"] == found["longest_context"]
    longer = fit(capsys, "Qwen__Qwen3-8B", "--hardware", "rtx-4090", "--context", str(found["max_model_len"] + 16))
    assert not longer["fits"]


def test_fit_knows_bundled_models_without_network(capsys: pytest.CaptureFixture[str]) -> None:
    """A model of the catalogue is planned by its name: 9.9 GiB of checkpoint, rope tables, deepstack inputs."""
    assert main(["fit", "Qwen/Qwen3-VL-8B-Instruct-FP8", "--hardware", "dgx-spark", "--offline", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights_bytes"] / GIB == pytest.approx(10.16, rel=0.005)


def test_fit_sizes_the_pool_as_profiling_would(capsys: pytest.CaptureFixture[str]) -> None:
    """Utilisation 0.9 of an H200 gives Qwen3-8B the 109.48 GiB of the log."""
    found = fit(
        capsys,
        "Qwen__Qwen3-8B",
        "--hardware",
        "h200",
        "--gpu-memory-utilization",
        "0.9",
        "--enforce-eager",
        "--max-num-seqs",
        "256",
    )
    assert found["kv_cache_bytes"] / GIB == pytest.approx(109.48, abs=0.02)


def test_fit_prints_the_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    """``--explain`` shows state, block, groups and the log's line."""
    main(
        ["fit", str(MODELS / f"{NANO}.json"), "--kv-cache-dtype", "fp8", "--kv-cache-memory-bytes", "4GiB", "--explain"]
    )
    out = capsys.readouterr().out
    assert "block: 4,176 tokens" in out
    assert "2,134,016 B" in out
    assert "groups: 5" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-num-seqs", "many"], "--max-num-seqs"),
        (["--max-num-seqs", "0"], "out of range"),
        (["--kv-cache-memory-bytes", "big"], "--kv-cache-memory-bytes"),
        (["--vllm-version", "new"], "vllm version"),
        (["--kv-cache-dtype", "fp7"], "kv_cache_dtype"),
        (["--hardware", "dgx-sparc"], "Did you mean 'dgx-spark'"),
        (["--tensor-parallel-size", "3"], "3 GPUs"),
    ],
)
def test_fit_names_a_wrong_flag(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A flag that cannot be understood is refused with its name."""
    assert main(["fit", str(MODELS / "Qwen__Qwen3-8B.json"), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_fit_lists_the_hardware(capsys: pytest.CaptureFixture[str]) -> None:
    """Every chip of the catalogue, and as JSON with its source."""
    assert main(["fit", "--hardware", "list"]) == 0
    assert "dgx-spark" in capsys.readouterr().out
    main(["fit", "--hardware", "list", "--json"])
    assert all(chip["source"] for chip in json.loads(capsys.readouterr().out))


def test_fit_without_a_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing to fit."""
    assert main(["fit"]) == 2
    assert "model: missing" in capsys.readouterr().err


def test_plan_prints_table_and_bar(tower_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """People see a bar, a table and a verdict."""
    assert main(["plan", "-c", str(tower_file), "--offline"]) == 0
    out = capsys.readouterr().out
    assert "█" in out
    assert "It fits." in out
    assert re.search(r"nemotron +1 +200000 +\d+ +4", out)


def test_plan_prints_json(tower_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Machines get engines, nodes and reasons."""
    main(["plan", "-c", str(tower_file), "--offline", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert [engine["name"] for engine in found["engines"]] == ["nemotron", "eyes"]
    assert found["nodes"][0]["name"] == "spark"


def test_what_if_changes_one_value_and_refuses(tower_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--what-if`` plans a change that is not written; exit code 2 when it does not fit."""
    change = "engines.eyes.context=200k"
    assert main(["plan", "-c", str(tower_file), "--offline", "--what-if", change]) == 2
    assert "engines.eyes.context:" in capsys.readouterr().out
    assert main(["plan", "-c", str(tower_file), "--offline", "--what-if", "nonsense"]) == 2


def test_plan_fits_a_terminal_of_80_columns(
    tower_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that is wider is written as two; a pipe gets it whole."""
    main(["plan", "-c", str(tower_file), "--offline"])
    piped = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    main(["plan", "-c", str(tower_file), "--offline"])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("engine ", "nemotron "))]
    assert max(map(len, table)) <= 80
    assert len(table) == 2 * len([line for line in piped.splitlines() if line.startswith(("engine ", "nemotron "))])


def test_plan_writes_a_page(tower_file: Path, tmp_path: Path) -> None:
    """``--html`` writes one self-contained page with SVG."""
    page = tmp_path / "plan.html"
    main(["plan", "-c", str(tower_file), "--offline", "--html", str(page)])
    text = page.read_text()
    assert text.count("<svg") == 1
    assert "nemotron: weights" in text
    assert "http" not in text


def test_plan_explains_one_engine(tower_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--explain ENGINE`` prints its arithmetic; an unknown engine is named."""
    assert main(["plan", "-c", str(tower_file), "--offline", "--explain", "nemotron"]) == 0
    assert "block: 8,320 tokens" in capsys.readouterr().out
    assert main(["plan", "-c", str(tower_file), "--offline", "--explain", "ears"]) == 2


def test_observation_is_shown_saved_and_used(
    tower_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log corrects the overhead of the next plan; a change of the flags it was measured with forgets it."""
    log = tmp_path / "eyes.log"
    log.write_text(LOG)
    plan = ["plan", "-c", str(tower_file), "--offline"]
    assert main([*plan, "--observe", str(log)]) == 2
    assert "--engine" in capsys.readouterr().err
    assert main([*plan, "--observe", str(log), "--engine", "eyes", "--save"]) == 0
    assert "10.43 GiB" in capsys.readouterr().out
    main([*plan, "--json"])
    eyes = json.loads(capsys.readouterr().out)["engines"][1]
    assert eyes["overhead"]["correction_bytes"] > 0.4 * GIB
    main([*plan, "--json", "--what-if", "engines.eyes.sequences=2"])
    assert json.loads(capsys.readouterr().out)["engines"][1]["overhead"]["correction_bytes"] == 0


def test_examples_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """The tower file that ``lmtower init`` writes for a Spark fits with its reserve kept."""
    example = Path(__file__).parents[2] / "examples" / "dgx-spark" / "tower.yaml"
    assert main(["plan", "-c", str(example), "--offline"]) == 0
    assert "It fits." in capsys.readouterr().out
    greedy = ["engines.nemotron.speculative_tokens=3", "engines.eyes.context=200k"]
    assert main(["plan", "-c", str(example), "--offline", "--what-if", greedy[0], "--what-if", greedy[1]]) == 2
