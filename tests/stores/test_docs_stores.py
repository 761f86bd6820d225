"""The examples of docs/stores.md, run as they stand: OpenAI SDK, LangChain, LlamaIndex."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtower.config.types import Stores
from tests.stores.conftest import SECRET, Running
from tests.stores.front import Front

PAGE = Path(__file__).parents[2] / "docs" / "stores.md"


@pytest.fixture
def front(running: Running) -> Iterator[Front]:
    front = Front(running.url, SECRET, {"sk-lmt-ada": "ada"}, "There are 30 days [1].")
    yield front
    front.stop()


def test_every_python_example_runs(front: Front, tmp_path: Path) -> None:
    """All blocks one after the other, as a reader would paste them, against the service behind a key."""
    (tmp_path / "leave.md").write_text("# Leave\n\nEveryone has 30 days of leave a year.")
    (tmp_path / "travel.md").write_text("# Travel\n\nThe company pays for the train, second class.")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 4
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"OPENAI_BASE_URL": f"{front.url}/v1", "OPENAI_API_KEY": "sk-lmt-ada"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr[-2000:]) == (0, "") or done.returncode == 0, done.stderr
    assert "leave.md" in done.stdout


def test_every_key_of_the_section_is_explained() -> None:
    """Each key under ``stores:`` stands on the page."""
    text = PAGE.read_text()
    assert [name for name in Stores.model_fields if name not in text] == []
