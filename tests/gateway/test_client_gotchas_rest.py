"""The rest of the clients' list of complaints, by number: what needs limits, replicas, a clock or a tower file."""

from __future__ import annotations

import asyncio
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest

from lmtower.config import load
from tests.fakes.engine import FakeEngine, ToolCall
from tests.gateway.support import events, running, tower_of, until, upstream

USER = [{"role": "user", "content": "hello"}]
PERSONAS: dict[str, Any] = {"plan": {"engine": "big"}, "agent": {"engine": "big", "tools": "strict"}}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_gotcha_07_spent_quota_is_told_as_one_and_not_tried_again(tmp_path: Path, path: str) -> None:
    """A hard limit is no burst: ``insufficient_quota``, ``x-should-retry: false``, and never after a 200."""
    body = {"model": "plan", "messages": USER, "input": "x", "max_tokens": 5, "max_output_tokens": 5}
    with FakeEngine() as engine:
        engine.script(text="a", input_tokens=78)
        async with running(tmp_path, engine, personas=PERSONAS, limits={"tokens_per_day": 80}) as tower:
            assert (await tower.client.post(path, json=body)).status_code == 200
            refused = [await tower.client.post(path, json=body | {"stream": stream}) for stream in (False, True)]
    for answer in refused:
        assert (answer.status_code, answer.headers["x-should-retry"]) == (429, "false")
        assert answer.headers["content-type"] == "application/json"
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        error = answer.json()["error"]
        assert error["type"] == "rate_limit_error" if path == "/v1/messages" else error["code"] == "insufficient_quota"


@pytest.mark.parametrize(
    ("persona", "trap"),
    [
        ("my/model: {engine: one}", "'/'"),
        ("demo1: {engine: one}", "'o1'"),
        ("pro3: {engine: one}", "'o3'"),
        ("duo4: {engine: one}", "'o4'"),
        ("my-gpt: {engine: one}", "'gpt'"),
        ("complete: {engine: one, fim: starcoder2}", "'starcoder2'"),
        ("starcoder2: {engine: one, fim: starcoder2}", None),
        ("plan: {engine: one}", None),
    ],
)
def test_gotcha_11_names_that_clients_misread_are_warned_about(tmp_path: Path, persona: str, trap: str | None) -> None:
    """Claude Code stops at a slash; Cline, Roo, Frigate and Continue take some names for OpenAI's models."""
    file = tmp_path / "tower.yaml"
    file.write_text(f"engines:\n  one: {{model: m, url: 'http://h:1'}}\npersonas:\n  {persona}\n")
    messages = [warning.message for warning in load(file).warnings]
    assert len(messages) == (0 if trap is None else 1)
    assert all(trap is not None and trap in message for message in messages)


@pytest.mark.parametrize("stream", [False, True])
async def test_gotcha_17_an_engine_may_think_for_ten_minutes(tmp_path: Path, stream: bool) -> None:
    """SDKs wait 600 s for a whole answer; what the gateway gives up after is longer, and it does give up."""
    with FakeEngine() as engine:
        gate = engine.gate()
        engine.script(text="at last", gate=gate, gate_after=-1)
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            settings = tower.gateway.snapshot.tower.gateway
            waiting = asyncio.create_task(tower.chat("plan", stream=stream))
            await engine.until(lambda e: e.to("/chat/completions"), timeout=5)
            tower.gateway.watch.tick(tower.gateway.clock() + 605, settings)
            gate.open()
            patient = await waiting
            engine.script(text="never", gate=engine.gate(), gate_after=-1)
            waiting = asyncio.create_task(tower.chat("plan", stream=stream))
            await engine.until(lambda e: len(e.to("/chat/completions")) == 2, timeout=5)
            tower.gateway.watch.tick(tower.gateway.clock() + settings.first_token_timeout + 1, settings)
            await engine.until(lambda e: e.disconnects, timeout=5)
            with pytest.raises(httpx.RemoteProtocolError) if stream else nullcontext():
                gone = await waiting
                assert gone.status_code >= 500
    assert patient.status_code == 200
    assert "at last" in "".join(text_of(patient.text, stream))


def text_of(answer: str, stream: bool) -> list[str]:
    if not stream:
        return [json.loads(answer)["choices"][0]["message"]["content"]]
    return [choice["delta"].get("content") or "" for chunk in events(answer) for choice in chunk["choices"]]


@pytest.mark.parametrize(
    "arguments", ['{"city": "Oslo"', '"{\\"city\\": \\"Oslo\\"}"', '{"city": "Oslo",}', "{'city': 'Oslo'}"]
)
async def test_gotcha_18_arguments_are_json_at_the_end_and_one_call_means_one(tmp_path: Path, arguments: str) -> None:
    """Put together from a stream they parse, whatever the model wrote; one call when only one may be; ids stay."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "weather", "parameters": schema}}
    calls = [ToolCall("weather", arguments, id="call_one"), ToolCall("weather", arguments, id="call_two")]
    with FakeEngine() as engine:
        engine.script(tool_calls=calls)
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            answer = await tower.chat("agent", tools=[tool], stream=True, parallel_tool_calls=False)
    deltas = [call for e in events(answer.text) for c in e["choices"] for call in c["delta"].get("tool_calls") or ()]
    assert {delta["index"] for delta in deltas} == {0}
    assert [delta["id"] for delta in deltas if "id" in delta] == ["call_one"]
    assert json.loads("".join(delta["function"]["arguments"] for delta in deltas)) == {"city": "Oslo"}


@pytest.mark.parametrize(
    ("headers", "fields"),
    [
        ({"x-claude-code-session-id": "s-%d"}, {}),
        ({"x-openwebui-chat-id": "s-%d"}, {}),
        ({}, {"prompt_cache_key": "s-%d"}),
        ({}, {"user": "s-%d"}),
    ],
)
async def test_gotcha_19_a_session_stays_where_its_prefix_is(
    tmp_path: Path, headers: dict[str, str], fields: dict[str, str]
) -> None:
    """By whatever its client names it: all requests of one session reach one replica, and sessions spread."""
    with FakeEngine("m") as left, FakeEngine("m") as right:
        table = [upstream(left, replica="left"), upstream(right, replica="right")]
        async with running(tmp_path, left, tower=tower_of(left), upstreams=table) as tower:
            for number in range(8):
                named = {name: value % number for name, value in headers.items()}
                body = {"model": "plan", **{name: value % number for name, value in fields.items()}}
                for turn in range(3):
                    said = {**body, "messages": [{"role": "user", "content": f"turn {turn} of {number}"}]}
                    await tower.client.post("/v1/chat/completions", json=said, headers=named)
            seen = [
                {
                    request.json["messages"][-1]["content"].partition(" of ")[2]
                    for request in engine.to("/chat/completions")
                }
                for engine in (left, right)
            ]
    assert not seen[0] & seen[1]
    assert seen[0]
    assert seen[1]


async def test_gotcha_20_a_repeated_request_counts_once(tmp_path: Path) -> None:
    """By the SDKs' header or an Idempotency-Key; another request counts."""
    with FakeEngine() as engine:
        engine.script(text="a")
        async with running(tmp_path, engine, personas=PERSONAS, limits={"requests_per_minute": 2}) as tower:
            statuses = []
            for mark in ({"x-stainless-retry-count": "0"}, {"x-stainless-retry-count": "1"}):
                body = {"model": "plan", "messages": USER}
                statuses.append((await tower.client.post("/v1/chat/completions", json=body, headers=mark)).status_code)
            statuses.append((await tower.chat("plan", "another")).status_code)
            statuses.append((await tower.chat("plan", "one more")).status_code)
            await until(lambda: len(tower.gateway.recent) == 4)
            marks = [record.retry for record in tower.gateway.recent]
    assert statuses == [200, 200, 200, 429]
    assert marks == [False, True, False, False]


@pytest.mark.parametrize("strict", [False, True])
async def test_gotcha_14_tools_of_anthropics_servers_do_not_reach_the_engine(tmp_path: Path, strict: bool) -> None:
    """Claude Code's web search is a request whose only tool no engine can run: it is answered without it."""
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
    own = {"name": "read", "input_schema": {"type": "object"}}
    body = {"model": "agent" if strict else "plan", "max_tokens": 9, "messages": USER}
    with FakeEngine() as engine:
        engine.script(text="no search here")
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            for tools, choice in (
                ([search], {"type": "tool", "name": "web_search"}),
                ([search, own], {"type": "auto"}),
            ):
                answer = await tower.client.post("/v1/messages", json=body | {"tools": tools, "tool_choice": choice})
                assert answer.status_code == 200, answer.text
        alone, beside = (request.json for request in engine.to("/messages"))
    assert not {"tools", "tool_choice"} & alone.keys()
    assert [tool["name"] for tool in beside["tools"]] == ["read"]
    assert beside["tool_choice"] == {"type": "auto"}
