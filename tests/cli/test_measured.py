"""``up`` and ``diff`` plan from what the nodes say; what was said is kept, so that a second plan is the same one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from lmtower.cli.desired import desired_of
from lmtower.cli.globals import Globals
from lmtower.cli.measured import Known, measure
from lmtower.engines import LaunchSpec
from lmtower.nodes.drivers import Observed
from lmtower.nodes.drivers.base import Report
from tests.fakes.driver import RecordingDriver

TOWER = """\
nodes: {{gpu: {{address: "{address}", hardware: {hardware}}}}}
engines:
  one: {{model: Qwen/Qwen3-8B, context: max, sequences: 2{more}}}
personas: {{p: {{engine: one}}}}
"""
GIB = 1024**3


class Node(RecordingDriver):
    """A node whose engines are given."""

    def __init__(self, *running: str) -> None:
        super().__init__("gpu")
        self._names = running

    async def observe(self) -> tuple[Observed, ...]:
        """The given engines, running."""
        return tuple(Observed(f"lmtower-{name}", name, "gpu", "0", True) for name in self._names)


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that prints this file's lines."""
    folder = tmp_path / "bin"
    folder.mkdir()
    rows = folder / "rows"
    rows.write_text("NVIDIA H100 80GB HBM3, 81559, 551, 81000, 9.0, 570.1\n")
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\ncat {rows}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return rows


def options_of(tmp_path: Path, *, hardware: str = "h100", address: str = "local", more: str = "") -> Globals:
    """The options of a call on this tower."""
    text = TOWER.format(hardware=hardware, address=address, more=more)
    (tmp_path / "tower.yaml").write_text(text, "utf-8")
    return Globals(tmp_path / "tower.yaml", tmp_path / "data")


def look(options: Globals, monkeypatch: pytest.MonkeyPatch, driver: RecordingDriver, *, fetch: bool = False) -> None:
    """What ``up`` does before it plans."""
    monkeypatch.setattr("lmtower.cli.desired.drivers_of", lambda *_: {"gpu": driver})
    monkeypatch.setattr("lmtower.nodes.memory._LOOK_SECONDS", 0.0)
    asyncio.run(measure(options, options.load().tower, fetch=fetch))


def test_plan_is_made_from_what_the_node_says(
    tmp_path: Path, nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other programs hold memory of the card: the context becomes shorter, and the look is told in one line."""
    options = options_of(tmp_path)
    free = desired_of(options, options.load()).rows["one"].max_model_len
    nvidia_smi.write_text("NVIDIA H100 80GB HBM3, 81559, 551, 26000, 9.0, 570.1\n")
    look(options, monkeypatch, Node())
    assert "gpu: NVIDIA H100 80GB HBM3, 25.4 of 79.1 GiB free" in capsys.readouterr().err
    wanted = desired_of(options, options.load())
    assert wanted.rows["one"].max_model_len < free
    assert wanted.plan.nodes[0].facts.memory_available_bytes == 26000 * 1024**2


def test_second_look_beside_running_engines_changes_nothing(
    tmp_path: Path, nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our engines hold the memory now; planned with what was free before them, the specs are the same."""
    options = options_of(tmp_path)
    look(options, monkeypatch, Node())
    first = desired_of(options, options.load()).specs
    nvidia_smi.write_text("NVIDIA H100 80GB HBM3, 81559, 551, 900, 9.0, 570.1\n")
    look(options, monkeypatch, Node("one"))
    assert desired_of(options, options.load()).specs == first


def test_other_hardware_than_declared_is_told(
    tmp_path: Path, nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tower file says two H200."""
    options = options_of(tmp_path, hardware="2x h200")
    look(options, monkeypatch, Node())
    said = capsys.readouterr().err
    assert "hardware says 2x h200, but there is NVIDIA H100" in said
    assert "hardware says 2x h200, but 1 GPU is there" in said
    assert desired_of(options, options.load()).plan.nodes[0].facts.gpus == 1


def test_node_that_does_not_answer_is_planned_from_the_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That is told, and the plan is the catalogue's."""
    monkeypatch.setenv("PATH", str(tmp_path))  # there is not even an ssh
    options = options_of(tmp_path, address="ssh://me@nowhere")
    look(options, monkeypatch, Node())
    assert "could not be asked for its memory and GPUs: planned from the catalogue" in capsys.readouterr().err
    assert desired_of(options, options.load()).plan.nodes[0].facts.memory_available_bytes > 79 * GIB


def test_version_of_an_image_is_asked(
    tmp_path: Path, nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A year for a tag says nothing; the image does. A written version that is wrong is told."""
    options = options_of(tmp_path, more=", image: nvcr.io/nvidia/vllm:26.02-py3")
    node = Node()
    node.versions["nvcr.io/nvidia/vllm:26.02-py3"] = "0.20.2"
    look(options, monkeypatch, node)
    assert desired_of(options, options.load()).rows["one"].version == "0.20.2"
    options = options_of(tmp_path, more=", image: nvcr.io/nvidia/vllm:26.02-py3, version: v0.33.0")
    look(options, monkeypatch, node)
    assert "v0.33.0 is written, but 'nvcr.io/nvidia/vllm:26.02-py3' holds vLLM 0.20.2" in capsys.readouterr().err
    assert desired_of(options, options.load()).rows["one"].version == "v0.33.0"


def test_image_whose_version_nobody_knows_is_fetched_before_the_plan(
    tmp_path: Path, nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the first up would start with the flags of another version, and the second replace them."""

    class Remote(Node):
        async def pull(self, spec: LaunchSpec, report: Report) -> None:
            await super().pull(spec, report)
            self.versions[spec.image or ""] = "0.20.2"

    options = options_of(tmp_path, more=", image: nvcr.io/nvidia/vllm:26.02-py3")
    node = Remote()
    look(options, monkeypatch, node)
    assert node.calls == [("close", "")]
    look(options, monkeypatch, node, fetch=True)
    assert ("pull", "lmtower-one") in node.calls
    assert desired_of(options, options.load()).rows["one"].version == "0.20.2"


def test_other_address_forgets_what_the_old_one_said(
    tmp_path: Path, nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node's name moved to another machine."""
    options = options_of(tmp_path)
    look(options, monkeypatch, Node())
    moved = options_of(tmp_path, address="ssh://me@other")
    assert Known.read(options.data_dir).facts(moved.load().tower) == ({}, [])


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"looks": 1})])
def test_broken_notes_are_none(tmp_path: Path, text: str) -> None:
    """A file that cannot be read is as good as no file."""
    (tmp_path / "nodes.json").write_text(text)
    assert Known.read(tmp_path) == Known()
