"""``tools: strict`` end to end: in three protocols, streamed and not, what a client gets and what is counted."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.engine import FakeEngine, ToolCall
from tests.gateway.support import Running, events, running, upstream

PERSONAS = {"agent": {"engine": "big", "tools": "strict", "system": "You act."}}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
GOOD = '{"city": "Oslo", "days": 3}'
REPAIRABLE = '{"city": "Oslo", "days": "3"'
HOPELESS = '"Paris"'
PROTOCOLS = ("chat", "messages", "responses")


def body(protocol: str, stream: bool, **fields: Any) -> tuple[str, dict[str, Any]]:
    """A request of that protocol that offers one tool."""
    shared = {"model": "agent", "stream": stream, **fields}
    said = [{"role": "user", "content": "Weather?"}]
    if protocol == "chat":
        tool: Any = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
        return "/v1/chat/completions", {"messages": said, "tools": [tool], **shared}
    if protocol == "messages":
        tool = {"name": "weather", "input_schema": SCHEMA}
        return "/v1/messages", {"max_tokens": 100, "messages": said, "tools": [tool], **shared}
    tool = {"type": "function", "name": "weather", "parameters": SCHEMA}
    return "/v1/responses", {"input": said, "tools": [tool], **shared}


def calls_of(protocol: str, stream: bool, text: str) -> list[tuple[str, Any]]:
    """(name, arguments) of the calls in an answer, as a careful client collects them."""
    if not stream:
        return _whole_calls(protocol, json.loads(text))
    found = events(text)
    if protocol == "chat":
        names: dict[int, str] = {}
        parts: dict[int, str] = {}
        for chunk in found:
            for choice in chunk["choices"]:
                for delta in choice["delta"].get("tool_calls") or ():
                    assert choice["finish_reason"] is None
                    names.setdefault(delta["index"], delta["function"].get("name", ""))
                    parts[delta["index"]] = parts.get(delta["index"], "") + delta["function"].get("arguments", "")
        return [(names[i], json.loads(parts[i])) for i in sorted(names)]
    if protocol == "messages":
        blocks: dict[int, list[str]] = {}
        for event in found:
            if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use":
                blocks[event["index"]] = [event["content_block"]["name"], ""]
            elif event["type"] == "content_block_delta" and event["delta"]["type"] == "input_json_delta":
                blocks[event["index"]][1] += event["delta"]["partial_json"]
        return [(name, json.loads(text)) for name, text in blocks.values()]
    assert found[-1]["type"] == "response.completed"
    assert [event["sequence_number"] for event in found] == sorted({event["sequence_number"] for event in found})
    done = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    calls = [(item["name"], json.loads(item["arguments"])) for item in done if item["type"] == "function_call"]
    assert calls == _whole_calls(protocol, found[-1]["response"])
    return calls


def _whole_calls(protocol: str, answer: dict[str, Any]) -> list[tuple[str, Any]]:
    if protocol == "chat":
        calls = answer["choices"][0]["message"]["tool_calls"]
        return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
    if protocol == "messages":
        return [(block["name"], block["input"]) for block in answer["content"] if block["type"] == "tool_use"]
    items = [item for item in answer["output"] if item["type"] == "function_call"]
    return [(item["name"], json.loads(item["arguments"])) for item in items]


async def ask(tower: Running, protocol: str, stream: bool, **fields: Any) -> tuple[int, str]:
    path, content = body(protocol, stream, **fields)
    answer = await tower.client.post(path, json=content)
    return answer.status_code, answer.text


def cases() -> list[Any]:
    whole = [("chat", False), ("responses", False)]  # vLLM itself answers 500 to a broken call in whole messages
    streams = [(protocol, True) for protocol in PROTOCOLS]
    return [pytest.param(*case, id="-".join(map(str, case))) for case in whole + streams]


@pytest.mark.parametrize(("protocol", "stream"), cases())
@pytest.mark.parametrize(
    ("arguments", "tally"), [(GOOD, (1, 0, 0, 0)), (REPAIRABLE, (0, 1, 0, 0)), (HOPELESS, (1, 0, 1, 0))]
)
async def test_client_gets_valid_arguments_whatever_the_engine_wrote(
    tmp_path: Path, protocol: str, stream: bool, arguments: str, tally: tuple[int, ...]
) -> None:
    """Valid calls pass, certain repairs are made, and one constrained retry replaces what cannot be repaired."""
    with FakeEngine() as engine:
        engine.script(text=GOOD)
        engine.script(times=1, text="Let me see.", tool_calls=[ToolCall("weather", arguments)])
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            status, text = await ask(tower, protocol, stream)
            [record] = await tower.records(1)
        sent = [request.json for request in engine.requests if request.method == "POST"]
    assert status == 200, text
    assert calls_of(protocol, stream, text) == [("weather", {"city": "Oslo", "days": 3})]
    assert "Let" in text
    counted = (
        record.tool_calls_valid,
        record.tool_calls_repaired,
        record.tool_calls_retried,
        record.tool_calls_rejected,
    )
    assert counted == tally
    assert len(sent) == 1 + tally[2]
    assert "tools" not in sent[-1] if tally[2] else sent[0]["tools"]


@pytest.mark.parametrize(("protocol", "stream"), cases())
async def test_second_failure_is_a_clear_error(tmp_path: Path, protocol: str, stream: bool) -> None:
    """After one retry the client is told so, in its protocol's words, and not asked to try again."""
    with FakeEngine() as engine:
        engine.script(text="no json at all")
        engine.script(times=1, tool_calls=[ToolCall("weather", HOPELESS)])
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            path, content = body(protocol, stream)
            text, status = "", 0
            with pytest.raises(httpx.RemoteProtocolError) if stream else nullcontext():  # cut after the error event
                async with tower.client.stream("POST", path, json=content) as answer:
                    status = answer.status_code
                    async for piece in answer.aiter_text():
                        text += piece
            [record] = await tower.records(1)
    assert "valid tool call" in text
    assert status == (200 if stream else 502)
    assert (record.tool_calls_retried, record.tool_calls_rejected) == (1, 1)


async def test_text_streams_on_while_tool_deltas_wait(tmp_path: Path) -> None:
    """Only the call is held back: text reaches the client before the engine has finished."""
    with FakeEngine() as engine:
        gate = engine.gate()
        engine.script(text="one two", tool_calls=[ToolCall("weather", GOOD)], gate=gate, gate_after=3)
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            path, content = body("chat", True)
            seen = early = ""
            async with tower.client.stream("POST", path, json=content) as answer:
                async for piece in answer.aiter_text():
                    seen += piece
                    if "two" in seen and not early:
                        early = seen
                        gate.open()
    assert "tool_calls" not in early
    assert calls_of("chat", True, seen) == [("weather", {"city": "Oslo", "days": 3})]
    assert events(seen)[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
async def test_strict_stream_cut_anywhere_gives_the_same_call(tmp_path: Path, size: int) -> None:
    """The network cuts bytes wherever it likes."""
    with FakeEngine() as engine:
        engine.script(text="hm", tool_calls=[ToolCall("weather", REPAIRABLE)], split=size)
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            _, text = await ask(tower, "chat", True)
    assert calls_of("chat", True, text) == [("weather", {"city": "Oslo", "days": 3})]


LEAK = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}</tool_call>'


def text_of(protocol: str, stream: bool, text: str) -> str:
    """The text of an answer, as a client of that protocol puts it together; the indexes have no holes."""
    if not stream:
        answer = json.loads(text)
        if protocol == "chat":
            return answer["choices"][0]["message"]["content"] or ""
        parts = answer["content"] if protocol == "messages" else answer["output"]
        return "".join(one.get("text", "") for part in parts for one in part.get("content", [part]))
    found = events(text)
    if protocol == "chat":
        return "".join(choice["delta"].get("content") or "" for chunk in found for choice in chunk["choices"])
    started = {"messages": "content_block_start", "responses": "response.output_item.added"}[protocol]
    key = {"messages": "index", "responses": "output_index"}[protocol]
    places = [event[key] for event in found if event["type"] == started]
    assert places == list(range(len(places)))
    assert all(event.get(key, 0) in places for event in found)
    if protocol == "messages":
        return "".join(event["delta"].get("text", "") for event in found if event["type"] == "content_block_delta")
    said = "".join(event["delta"] for event in found if event["type"] == "response.output_text.delta")
    last = found[-1]["response"]["output"]
    assert [item["type"] for item in last] == [
        event["item"]["type"] for event in found if event["type"] == "response.output_item.done"
    ]
    whole = "".join(part["text"] for item in last if item["type"] == "message" for part in item["content"])
    assert whole.rstrip() == said.rstrip()
    return said


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("before", ["Sure. ", "", "a < b, [TOOL and <tool_"])
async def test_call_that_leaked_into_the_text_becomes_a_call(
    tmp_path: Path, protocol: str, stream: bool, before: str
) -> None:
    """Markup that the engine's parser missed is taken out of the text in every protocol, streamed or not."""
    with FakeEngine() as engine:
        engine.script(text=before + LEAK, split=7)
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            _, text = await ask(tower, protocol, stream)
            [record] = await tower.records(1)
    assert calls_of(protocol, stream, text) == [("weather", {"city": "Oslo", "days": 3})]
    assert text_of(protocol, stream, text).rstrip() == before.rstrip()
    assert (record.tool_calls_valid, record.tool_calls_retried) == (1, 0)
    ends = {"chat": '"finish_reason":"tool_calls"', "messages": '"stop_reason":"tool_use"'}
    assert ends.get(protocol, '"status":"completed"') in text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "said",
    [
        'Hermes writes <tool_call>{"name": "f", "arguments": {}}</tool_call>, then waits.',
        "See <function= here",
        "<tool_",
    ],
)
async def test_text_about_tool_calls_stays_a_text(tmp_path: Path, protocol: str, stream: bool, said: str) -> None:
    """A tool that nobody offered is an example, not a call; what only begins like one is not lost."""
    with FakeEngine() as engine:
        engine.script(text=said)
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            status, text = await ask(tower, protocol, stream)
        assert len([request for request in engine.requests if request.method == "POST"]) == 1
    assert status == 200
    assert text_of(protocol, stream, text) == said


async def test_forced_call_that_the_model_did_not_make_is_retried(tmp_path: Path) -> None:
    """``tool_choice: required`` is a promise."""
    with FakeEngine() as engine:
        engine.script(text=GOOD)
        engine.script(times=1, text="I would rather not.")
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            _, text = await ask(tower, "chat", False, tool_choice="required")
    assert calls_of("chat", False, text) == [("weather", {"city": "Oslo", "days": 3})]


async def test_parallel_calls_are_cut_to_one_when_the_client_says_so(tmp_path: Path) -> None:
    """``parallel_tool_calls: false`` holds whatever the engine does."""
    two = [ToolCall("weather", GOOD, id="a"), ToolCall("weather", GOOD, id="b")]
    with FakeEngine() as engine:
        engine.script(tool_calls=two)
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            _, both = await ask(tower, "chat", True)
            _, one = await ask(tower, "chat", True, parallel_tool_calls=False)
    assert len(calls_of("chat", True, both)) == 2
    assert len(calls_of("chat", True, one)) == 1


async def test_broken_history_does_not_reach_the_engine(tmp_path: Path) -> None:
    """One bad turn cannot poison a conversation."""
    history = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{bro"}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "?"},
    ]
    with FakeEngine() as engine:
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            await ask(tower, "chat", False, messages=history)
        sent = engine.requests[-1].json["messages"]
    assert [message["role"] for message in sent] == ["system", "user", "assistant", "tool"]
    assert isinstance(json.loads(sent[2]["tool_calls"][0]["function"]["arguments"]), dict)


BROKEN_CALLS = [
    (400, {"error": {"message": "Expecting ',' delimiter: line 1 column 18 (char 17)", "type": "BadRequestError"}}),
    (400, {"error": {"message": "1 validation error for AnthropicContentBlock\ninput\n  Input should be a dict"}}),
    (500, {"error": {"code": 500, "message": "Failed to parse input at pos 12", "type": "server_error"}}),
]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions", "/v1/responses"])
@pytest.mark.parametrize(("status", "error"), BROKEN_CALLS)
async def test_call_that_the_engine_could_not_read_is_asked_for_again(
    tmp_path: Path, path: str, status: int, error: dict[str, Any]
) -> None:
    """vLLM and llama.cpp answer with an error when they cannot decode their model's call; the guard retries once."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool: dict[str, Any] = {"name": "weather", "input_schema": schema}
    if path != "/v1/messages":
        tool = {"type": "function", "name": "weather", "parameters": schema}
    if path == "/v1/chat/completions":
        tool = {"type": "function", "function": {"name": "weather", "parameters": schema}}
    said = [{"role": "user", "content": "hello"}]
    body = {"model": "agent", "messages": said, "input": said, "max_tokens": 90, "tools": [tool]}
    with FakeEngine() as engine:
        engine.script(text='{"city": "Oslo"}', input_tokens=9)
        engine.script(times=1, status=status, error=error)
        personas = {"agent": {"engine": "big", "tools": "strict"}, "free": {"engine": "big"}}
        async with running(tmp_path, engine, personas=personas) as tower:
            answer = await tower.client.post(path, json=body)
            [record] = await tower.records(1)
            engine.script(status=status, error=error)
            twice = await tower.client.post(path, json=body)
            free = await tower.client.post(path, json=body | {"model": "free"})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    if path == "/v1/messages":
        [block] = told["content"]
        assert (block["name"], block["input"], told["stop_reason"]) == ("weather", {"city": "Oslo"}, "tool_use")
    elif path == "/v1/responses":
        [item] = told["output"]
        assert (item["name"], item["arguments"], told["status"]) == ("weather", '{"city": "Oslo"}', "completed")
    else:
        [call] = told["choices"][0]["message"]["tool_calls"]
        assert (call["function"]["arguments"], told["choices"][0]["finish_reason"]) == (
            '{"city": "Oslo"}',
            "tool_calls",
        )
    assert told["model"] == "agent"
    assert (record.tool_calls_retried, record.tool_calls_rejected, record.input_tokens) == (1, 0, 9)
    assert (twice.status_code, free.status_code) == (502, 502)


@pytest.mark.parametrize("stream", [False, True])
async def test_llamacpp_is_asked_again_where_it_constrains_answers(tmp_path: Path, stream: bool) -> None:
    """It has no structured output in Anthropic's form, so the second request of a message is a chat of its texts."""
    path, first = body("messages", stream, tool_choice={"type": "any"}, system="Be brief.")
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "rain"}]}
    call = {"type": "tool_use", "id": "t", "name": "weather", "input": {"city": "Oslo"}}
    history = [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    first["messages"] += history
    with FakeEngine() as engine:
        engine.script(text="no call", path="/messages", input_tokens=10)
        engine.script(text=GOOD, path="/chat/completions", input_tokens=7)
        table = [upstream(engine, runtime="llamacpp")]
        async with running(tmp_path, engine, personas=PERSONAS, upstreams=table) as tower:
            answer = await tower.client.post(path, json=first)
            [record] = await tower.records(1)
        again = engine.requests[-1]
    assert calls_of("messages", stream, answer.text) == [("weather", {"city": "Oslo", "days": 3})]
    assert again.path == "/v1/chat/completions"
    assert again.json["response_format"]["json_schema"]["schema"] == SCHEMA
    assert [message["role"] for message in again.json["messages"]] == ["system", "user", "assistant", "user"]
    assert again.json["messages"][0]["content"] == "You act.\n\nBe brief."
    assert again.json["messages"][3]["content"].startswith("rain\n\nCall the tool 'weather'")
    assert (record.input_tokens, record.tool_calls_retried, record.tool_calls_rejected) == (17, 1, 0)
