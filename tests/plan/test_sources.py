"""Where a model's small files come from: folder, cache, catalogue; the hub is not asked here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmtower.config.types import Tower
from lmtower.errors import PlanError
from lmtower.plan import sources
from lmtower.plan.catalogue import bundled, names
from lmtower.plan.estimate import Options, estimate
from lmtower.plan.local import this_machine
from lmtower.plan.sources import collect, find_model
from tests.plan.shapes import GIB, PRESET, QWEN, config


def _cache(home: Path, name: str) -> None:
    """A Hugging Face cache with one snapshot."""
    snapshot = home / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(config(QWEN)))
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 16 * GIB}}))


def test_cache_comes_before_the_catalogue(tmp_path: Path) -> None:
    """What is on disk is what will be loaded."""
    _cache(tmp_path, "Qwen/Qwen3-8B")
    found = find_model("Qwen/Qwen3-8B", environ={"HF_HOME": str(tmp_path)}, offline=True)
    assert (found.origin, found.total_size) == ("the Hugging Face cache", 16 * GIB)


def test_cache_of_a_model_that_nobody_bundled_is_found(tmp_path: Path) -> None:
    """``HF_HUB_CACHE`` names the folder itself."""
    _cache(tmp_path, "someone/own-tune")
    found = find_model("someone/own-tune", environ={"HF_HUB_CACHE": str(tmp_path / "hub")}, offline=True)
    assert estimate(found, Options()).weights.bytes / GIB == pytest.approx(15.268, abs=0.001)


def test_path_is_relative_to_the_tower_file(tmp_path: Path) -> None:
    """A folder written in the tower file is found beside it."""
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "config.json").write_text(json.dumps(config(QWEN)))
    found = find_model("models/mine", base=tmp_path, environ={}, offline=True)
    assert (found.name, found.origin) == ("mine", str(tmp_path / "models" / "mine"))


def test_hub_that_cannot_be_reached_is_said_quickly(tmp_path: Path) -> None:
    """One look, no retries: nothing listens on that port."""
    environ = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    with pytest.raises(PlanError, match="the hub cannot be reached"):
        find_model("someone/unknown", environ=environ)


def test_catalogue_holds_the_preset_and_reads_every_entry() -> None:
    """Planning the presets works offline, and no entry of the catalogue is broken."""
    assert {engine["model"] for engine in PRESET.values()} <= set(names())
    for name in names():
        found = bundled(name)
        assert found is not None
        assert estimate(found, Options()).weights.bytes > 0


def test_catalogue_is_found_without_regard_to_case() -> None:
    """Names as people type them; what is not there is None."""
    assert bundled("qwen/qwen3-8b") is not None
    assert bundled("QWEN/Qwen3-VL-8B-instruct-fp8") is not None
    assert bundled("nobody/nothing") is None


def test_collect_skips_external_engines_and_names_the_engine_at_fault(tmp_path: Path) -> None:
    """One entry for each engine that we run."""
    engines = {"far": {"url": "http://10.0.0.1", "model": "x"}, "near": {"model": "Qwen/Qwen3-8B"}}
    tower = Tower.model_validate({"engines": engines, "personas": {"p": {"engine": "near"}}})
    assert set(collect(tower, tmp_path, {}, offline=True)) == {"near"}
    broken = Tower.model_validate({"engines": {"one": {"model": "./gone"}}, "personas": {"p": {"engine": "one"}}})
    with pytest.raises(PlanError, match=r"engines\.one\.model: \./gone"):
        collect(broken, tmp_path, {}, offline=True)


def test_this_machine_is_read_from_meminfo(tmp_path: Path) -> None:
    """MemTotal and MemAvailable of /proc/meminfo; without the file the system is asked."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 127600748 kB\nMemFree: 1000 kB\nMemAvailable: 120000000 kB\n")
    found = this_machine("spark", meminfo=meminfo)
    assert (found.memory_total_bytes, found.memory_available_bytes) == (127600748 * 1024, 120000000 * 1024)
    assert this_machine("here", meminfo=tmp_path / "none").memory_total_bytes > 0


def test_index_of_other_shards_is_not_mixed_with_the_folder(tmp_path: Path) -> None:
    """With an index, only the files that it lists count; when some are missing, its total does."""
    (tmp_path / "config.json").write_text(json.dumps(config(QWEN)))
    index = {
        "metadata": {"total_size": 5 * GIB},
        "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"},
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert sources.read_path(tmp_path).tensors is None
    assert sources.read_path(tmp_path).total_size == 5 * GIB
