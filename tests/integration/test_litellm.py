"""The rendered file in the real LiteLLM proxy: it loads, and its answers come from the same engine."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from ruamel.yaml import YAML

from lmtower.cli.app import main
from tests.e2e.clients import python_of
from tests.fakes.engine import FakeEngine

pytestmark = pytest.mark.tools
TOWER = """
engines: {{mine: {{url: "{url}", model: fake-model, recipe: qwen3}}}}
personas:
  brief: {{engine: mine, temperature: 0.3, top_k: 7, thinking: off, max_tokens: 50, aliases: [short]}}
  plain: {{engine: mine}}
"""


@pytest.fixture(scope="module")
def program() -> Path:
    """The proxy in an environment of its own; skipped where it was not installed."""
    return python_of("litellm").with_name("litellm")


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    """The engine behind both gateways."""
    with FakeEngine() as fake:
        yield fake


@pytest.fixture
def proxy(
    program: Path, engine: FakeEngine, tmp_path: Path, ports: Callable[[], int]
) -> Iterator[tuple[httpx.Client, Path]]:
    """LiteLLM on the rendered file, ready."""
    (tmp_path / "tower.yaml").write_text(TOWER.format(url=engine.url))
    assert main(["-c", str(tmp_path / "tower.yaml"), "render", "litellm", "--out", str(tmp_path)]) == 0
    port = ports()
    environment = {**os.environ, "LITELLM_MASTER_KEY": "sk-test", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [str(program), "--config", str(tmp_path / "config.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path / "litellm.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path)
    headers = {"Authorization": "Bearer sk-test"}
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60, trust_env=False)
    try:
        _wait(client, process, log)
        yield client, tmp_path / "config.yaml"
    finally:
        client.close()
        process.terminate()
        process.wait(20)


def _wait(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            if client.get("/health/liveliness").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)  # a foreign program tells nobody when it is ready
    raise AssertionError(log.read_text()[-3000:])


def test_rendered_file_answers_through_the_same_engine(
    proxy: tuple[httpx.Client, Path], engine: FakeEngine, tmp_path: Path
) -> None:
    """Personas are its models; sampling, top_k and the thinking switch reach the engine; aliases work; back it goes."""
    client, config = proxy
    names = {each["id"] for each in client.get("/v1/models").json()["data"]}
    assert {"brief", "plain"} <= names
    for model in ("brief", "short"):
        engine.clear()
        engine.script(text="from the engine")
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.json()["choices"][0]["message"]["content"] == "from the engine", answer.text
        (sent,) = [each.json for each in engine.to("/chat/completions")]
        assert (sent["model"], sent["temperature"], sent["top_k"], sent["max_tokens"]) == ("fake-model", 0.3, 7, 50)
        assert sent["chat_template_kwargs"] == {"enable_thinking": False}
    back = tmp_path / "back.yaml"
    assert main(["import", "litellm", str(config), "--out", str(back)]) == 0
    assert main(["-c", str(back), "check"]) == 0
    tower = YAML(typ="safe").load(back.read_text())
    assert [each["url"] for each in tower["engines"].values()] == [engine.url]
    assert (tower["personas"]["brief"]["temperature"], tower["personas"]["brief"]["aliases"]) == (0.3, ["short"])
