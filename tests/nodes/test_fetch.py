"""Fetching weights ahead with the real huggingface_hub against a small hub: progress, cache, what is missing."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtower.engines.spec import LaunchSpec
from lmtower.errors import EngineError
from lmtower.nodes.drivers import Progress
from lmtower.nodes.drivers.process import ProcessDriver
from lmtower.nodes.fetch import is_hub_model, parse_progress
from tests.nodes.hub import FILES, serve


@pytest.fixture
def hub() -> Iterator[str]:
    """Address of a running hub."""
    with serve() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def spec_of(model: str, hub: str, home: Path) -> LaunchSpec:
    """An engine of that model, whose Python is ours."""
    env = {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return LaunchSpec("one", "local", "vllm", (sys.executable,), env=env, served_model=model)


async def test_weights_are_fetched_with_progress_and_only_once(tmp_path: Path, hub: str) -> None:
    """The last step is all of it; the second pull finds the cache and reports nothing."""
    driver = ProcessDriver("local", tmp_path, dict(os.environ))
    total = sum(map(len, FILES.values()))
    seen: list[Progress] = []
    await driver.pull(spec_of("tests/tiny", hub, tmp_path / "home"), seen.append)
    assert seen[-1] == Progress("weights tests/tiny", total, total)
    again: list[Progress] = []
    await driver.pull(spec_of("tests/tiny", hub, tmp_path / "home"), again.append)
    assert again == []


async def test_model_that_does_not_exist_is_told(tmp_path: Path, hub: str) -> None:
    """The hub's answer becomes the sentence about missing weights."""
    driver = ProcessDriver("local", tmp_path, dict(os.environ))
    with pytest.raises(EngineError, match=r"engine 'one': the model's weights are missing on the node"):
        await driver.pull(spec_of("tests/nothing", hub, tmp_path / "home"), lambda _: None)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("Qwen/Qwen3-8B", True),
        ("/data/model", False),
        ("bundled:smollm2", False),
        ("a/b.gguf", False),
        ("./a/b", False),
    ],
)
def test_only_hub_models_are_fetched(model: str, expected: bool) -> None:
    """Folders, files and bundled models are there or not."""
    assert is_hub_model(model) is expected


@pytest.mark.parametrize(("line", "expected"), [("10 20\n", (10, 20)), ("Fetching 2 files", None), ("", None)])
def test_progress_lines_are_told_from_others(line: str, expected: tuple[int, int] | None) -> None:
    """The hub's own bars are not ours."""
    assert parse_progress(line) == expected
