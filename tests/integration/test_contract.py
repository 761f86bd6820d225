"""The same contract with three engines: the fake one, the embedded llama.cpp, and real vLLM on a CPU.

What clients rely on must not depend on the engine: shapes, usage, errors, strict tools, cancelling.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from lmtower.config.types import Tower
from lmtower.gateway import Upstream
from tests.fakes.engine import FakeEngine, ToolCall
from tests.gateway.support import Running, events, running

ENGINES = [
    "fake",
    pytest.param("embedded", marks=pytest.mark.embedded),
    pytest.param("vllm", marks=pytest.mark.vllm),
]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
ASK = [{"role": "user", "content": "Say hi."}]


def _command(request: pytest.FixtureRequest, kind: str, port: int) -> tuple[list[str], str, int]:
    """Command line, served name and seconds that it may take to start."""
    if kind == "embedded":
        pytest.importorskip("xllamacpp")
        name, flags = "bundled:smollm2", ["--context", "1024", "--sequences", "2", "--stay"]
        return [sys.executable, "-m", "lmtower.nodes.embedded", "--model", name, "--port", str(port), *flags], name, 120
    python: Path = request.getfixturevalue("vllm_python")
    model: Path = request.getfixturevalue("smollm2")
    flags = ["--served-model-name", "smol", "--max-model-len", "1024", "--enable-auto-tool-choice"]
    flags += ["--tool-call-parser", "hermes", "--enable-prompt-tokens-details", "--enforce-eager", "--port", str(port)]
    serve = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--host", "127.0.0.1"]
    return [*serve, *flags], "smol", 900


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def _process(request: pytest.FixtureRequest, kind: str) -> AsyncIterator[tuple[str, str]]:
    """(URL, served name) of a real engine."""
    port = _free_port()
    command, name, patience = _command(request, kind, port)
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, env=env, stdin=quiet, stdout=quiet, stderr=quiet)
    try:
        async with asyncio.timeout(patience), httpx.AsyncClient() as client:
            while True:
                assert process.returncode is None, f"engine {kind} stopped"
                try:
                    if (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.2)  # nothing to wait on: the engine only answers when it is ready
        yield f"http://127.0.0.1:{port}", name
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


@pytest.fixture(params=ENGINES)
async def tower(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    """A gateway with one strict persona in front of the engine."""
    kind = request.param
    with FakeEngine() as fake:
        if kind == "fake":
            url, name = fake.url, fake.models[0]
            fake.script(text="hi there", cached_tokens=1)
            fake.script(text="on and on", stall_after=2, when=lambda seen: seen.json.get("ignore_eos"))
            tools = {"when": lambda seen: bool(seen.json.get("tools"))}
            fake.script(tool_calls=[ToolCall("weather", '{"city": "Oslo", "days": "3"')], **tools)
            fake.script(text='{"city": "Oslo", "days": 3}', when=lambda seen: "output_config" in seen.json)
            async with _running(tmp_path, fake, url, name, kind) as found:
                yield found
        else:
            async with _process(request, kind) as (url, name), _running(tmp_path, fake, url, name, kind) as found:
                yield found


@asynccontextmanager
async def _running(folder: Path, fake: FakeEngine, url: str, name: str, kind: str) -> AsyncIterator[Running]:
    persona = {"engine": "e", "tools": "strict", "max_tokens": 8, "enforce": {"temperature": 0}, "system": "Be brief."}
    tower = Tower.model_validate(
        {
            "gateway": {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "shutdown_grace": 5},
            "engines": {"e": {"model": name, "url": url}},
            "personas": {"p": persona},
        }
    )
    runtime: Any = "llamacpp" if kind == "embedded" else "vllm"
    table = [Upstream(engine="e", replica="e", url=url, model=name, recipe="smollm2", runtime=runtime)]
    async with running(folder, fake, tower=tower, upstreams=table) as found:
        found.client.timeout = httpx.Timeout(600)
        yield found


async def test_engine_keeps_the_contract(tower: Running) -> None:
    """Chat, completions, messages and responses, streamed and not; usage, errors, strict tools, cancelling."""
    await _answers(tower)
    await _errors(tower)
    await _tools(tower)
    await _goes_on(tower)
    await _stops(tower)
    await _cancel(tower)


def _is_real(tower: Running) -> bool:
    return tower.engine.url != tower.gateway.snapshot.tower.engines["e"].url


async def _answers(tower: Running) -> None:
    chat = {"model": "p", "messages": ASK, "max_tokens": 6}
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("chat/completions", chat),
        ("completions", {"model": "p", "prompt": "One, two,", "max_tokens": 6}),
        ("messages", chat),
        ("responses", {"model": "p", "input": "Say hi.", "max_output_tokens": 6}),
    ]
    for path, body in bodies:
        before = len(tower.gateway.recent)
        whole = await tower.client.post(f"/v1/{path}", json=body)
        streamed = await tower.client.post(f"/v1/{path}", json=body | {"stream": True})
        assert (whole.status_code, streamed.status_code) == (200, 200), (path, whole.text, streamed.text)
        assert whole.json()["model"] == "p"
        usage = whole.json()["usage"]
        assert (usage.get("prompt_tokens") or usage.get("input_tokens")) > 0
        ends = {"messages": "message_stop", "responses": "response.completed"}
        if path in ends:
            kinds = [event["type"] for event in events(streamed.text)]
            assert kinds[-1] in (ends[path], "response.incomplete"), kinds
        else:
            assert streamed.text.endswith("data: [DONE]\n\n")
            assert not any(event.get("usage") for event in events(streamed.text))
        records = await tower.records(before + 2)
        assert all(record.output_tokens > 0 and record.input_tokens > 0 for record in records[before:])


async def _errors(tower: Running) -> None:
    if _is_real(tower):
        long = [{"role": "user", "content": "word " * 3000}]
        chat = await tower.client.post("/v1/chat/completions", json={"model": "p", "messages": long})
        told = await tower.client.post("/v1/messages", json={"model": "p", "max_tokens": 5, "messages": long})
        assert (chat.status_code, chat.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert told.json()["error"]["message"].startswith("prompt is too long")
        for path in ("chat/completions", "messages", "completions", "responses"):
            body = {"model": "p", "messages": ASK, "input": "x", "prompt": "x", "max_tokens": 4, "top_p": "hot"}
            bad = await tower.client.post(f"/v1/{path}", json=body)
            assert (bad.status_code, bad.json()["error"]["type"]) == (400, "invalid_request_error"), (path, bad.text)
    unknown = await tower.client.post("/v1/messages", json={"model": "q", "messages": ASK, "max_tokens": 4})
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")


async def _tools(tower: Running) -> None:
    """A forced call fits its schema in every protocol, streamed or not, whatever the model makes of it first."""
    for stream in (False, True):
        chat = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
        flat = {"type": "function", "name": "weather", "parameters": SCHEMA}
        shared = {"model": "p", "max_tokens": 60, "stream": stream}
        requests: dict[str, dict[str, Any]] = {
            "chat/completions": {"messages": ASK, "tools": [chat], "tool_choice": "required"},
            "messages": {
                "messages": ASK,
                "tools": [{"name": "weather", "input_schema": SCHEMA}],
                "tool_choice": {"type": "any"},
            },
            "responses": {"input": ASK, "tools": [flat], "tool_choice": "required", "max_output_tokens": 60},
        }
        for path, body in requests.items():
            answer = await tower.client.post(f"/v1/{path}", json=shared | body)
            assert answer.status_code == 200, (path, stream, answer.text)
            text = "".join(_arguments(path, stream, answer.text))
            arguments = json.loads(text)
            assert isinstance(arguments["city"], str), (path, stream, text)
            assert isinstance(arguments["days"], int), (path, stream, text)


def _arguments(path: str, stream: bool, text: str) -> list[str]:
    """The arguments of the only call, as a client of that protocol collects them."""
    if not stream:
        answer = json.loads(text)
        if path == "messages":
            return [json.dumps(block["input"]) for block in answer["content"] if block["type"] == "tool_use"]
        if path == "responses":
            return [item["arguments"] for item in answer["output"] if item["type"] == "function_call"]
        return [call["function"]["arguments"] for call in answer["choices"][0]["message"]["tool_calls"]]
    found = events(text)
    if path == "messages":
        return [event["delta"].get("partial_json", "") for event in found if event["type"] == "content_block_delta"]
    if path == "responses":
        done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
        return [item["arguments"] for item in done if item["type"] == "function_call"]
    deltas = [choice["delta"] for event in found for choice in event["choices"]]
    return [call["function"]["arguments"] for delta in deltas for call in delta.get("tool_calls") or ()]


async def _goes_on(tower: Running) -> None:
    """A response can be gone on from by its id: the engine takes the earlier output as input."""
    first = await tower.client.post("/v1/responses", json={"model": "p", "input": "Say hi.", "max_output_tokens": 4})
    more = {"model": "p", "input": "Again.", "max_output_tokens": 4, "previous_response_id": first.json()["id"]}
    second = await tower.client.post("/v1/responses", json=more)
    assert (first.status_code, second.status_code) == (200, 200), second.text
    assert second.json()["previous_response_id"] == first.json()["id"]


async def _stops(tower: Running) -> None:
    """A dozen stop strings are too many for vLLM alone."""
    stops = [f"never{number}" for number in range(11)] + [" "]
    for stream in (False, True):
        body = {"model": "p", "messages": ASK, "stop": stops, "stream": stream, "max_tokens": 8}
        answer = await tower.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        choices = [c for event in events(answer.text) for c in event["choices"]] if stream else answer.json()["choices"]
        texts = [
            (choice.get("delta") or choice.get("message"))["content"] or ""
            for choice in choices
            if (choice.get("delta") or choice.get("message") or {}).get("content")
        ]
        assert " " not in "".join(texts)
        told = {"model": "p", "messages": ASK, "stop_sequences": stops, "stream": stream, "max_tokens": 8}
        answer = await tower.client.post("/v1/messages", json=told)
        assert answer.status_code == 200, answer.text
        found = events(answer.text) if stream else answer.json()["content"]
        said = "".join((event.get("delta") or event).get("text", "") for event in found)
        end = next(e["delta"] for e in reversed(found) if e["type"] == "message_delta") if stream else answer.json()
        assert " " not in said
        assert (end["stop_reason"], end["stop_sequence"]) == ("stop_sequence", " "), answer.text


async def _cancel(tower: Running) -> None:
    """The engine gives up a call whose client left, long before its answer would have been complete."""
    before = len(tower.gateway.recent)
    body = {"model": "p", "messages": ASK, "max_tokens": 900, "stream": True, "ignore_eos": True}
    async with tower.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for _ in answer.aiter_bytes():
            break
    record = (await tower.records(before + 1))[-1]
    assert (record.outcome, record.status) == ("cancelled", 499)
    assert 0 < record.output_tokens < 450
    async with asyncio.timeout(10):
        while await _works(tower):  # noqa: ASYNC110 - the engine tells it by its metrics alone
            await asyncio.sleep(0.05)


async def _works(tower: Running) -> bool:
    """Whether the engine is at work, as its own metrics say."""
    url = tower.gateway.snapshot.tower.engines["e"].url
    async with httpx.AsyncClient() as client:
        told = (await client.get(f"{url}/metrics")).text
    running = re.findall(r"^(?:vllm:num_requests_running|llamacpp:requests_processing)\S* (\S+)$", told, re.MULTILINE)
    assert running, told
    return any(float(number) for number in running)
