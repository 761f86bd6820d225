"""Fuzz: whatever a client sends and however an engine answers, no 5xx from bad input and always the right envelope."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lmtower import recipes
from lmtower.config.types import Persona
from lmtower.guard import (
    Strict,
    StrictChatReply,
    StrictMessagesReply,
    StrictResponsesReply,
    ToolCache,
    mended,
    rules_of,
)
from lmtower.guard.repair import as_object, repair
from lmtower.guard.tools import Tool, compile_tools
from lmtower.personas import PREPARERS, compile_persona, prepare
from lmtower.wire import faults, images
from lmtower.wire import top as tops
from lmtower.wire.answers import MALFORMED, malformed
from lmtower.wire.chat import ChatReply
from lmtower.wire.citing import CitingReply, Found
from lmtower.wire.completions import CompletionReply
from lmtower.wire.faults import Dialect, Fault
from lmtower.wire.infill import FimReply, InfillReply
from lmtower.wire.keeping import KeepingReply
from lmtower.wire.messages import MessagesReply
from lmtower.wire.reply import Reply
from lmtower.wire.responses import ResponsesReply
from lmtower.wire.stops import StoppingReply
from lmtower.wire.stops_messages import StoppingMessages
from tests.fakes.engine import FakeEngine
from tests.gateway.support import running

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = """model messages input prompt suffix system instructions tools tool_choice parallel_tool_calls stop stream n
    stream_options max_tokens thinking reasoning encoding_format dimensions documents query top_n n_predict input_prefix
    input_suffix input_extra response_fields previous_response_id background temperature return_documents user"""
NAMES = st.sampled_from(tuple(FIELDS.split()))
KINDS = ("text", "image_url", "image", "tool_use", "function_call", "function", "custom")
PART = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "user", "assistant", "tool", "developer"]) | JSON,
        "type": st.sampled_from(["text", "image_url", "image", "tool_use", "function_call", "function", "custom"])
        | JSON,
        "content": JSON | st.lists(st.fixed_dictionaries({}, optional={"type": JSON, "text": JSON, "image_url": JSON})),
        "tool_calls": JSON | st.lists(st.fixed_dictionaries({}, optional={"id": JSON, "function": JSON}), max_size=2),
        "function": JSON,
        "name": JSON,
        "source": JSON,
        "image_url": JSON,
        "arguments": JSON,
        "input": JSON,
        "text": JSON,
    },
)
BODY = st.dictionaries(NAMES, JSON | st.lists(PART, max_size=3), max_size=7)
PERSONA = compile_persona(
    "p",
    Persona(engine="e", system="Prompt.", tools="strict", fim="qwen2.5-coder", canonical_tools=True, thinking="on"),
    served="s",
    recipe=recipes.get("qwen2.5-coder"),
    max_model_len=100,
)
DIALECTS: tuple[Dialect, ...] = ("openai", "anthropic", "responses")
EASY = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("protocol", PREPARERS)
@EASY
@given(body=BODY)
def test_any_body_is_prepared_or_refused_with_a_4xx(protocol: str, body: dict[str, Any]) -> None:
    """Preparers raise Faults of the client's fault, never anything else; what they make is JSON."""
    raw = json.dumps(body).encode()
    refused: Fault | None = None
    try:
        top = tops.split(mended(protocol, raw))
        for field in ("messages", "input"):
            if field in top:
                found = images.find(bytes(memoryview(top[field])))
                if found is not None:
                    images.check(found, PERSONA.images, ())
        rules_of(top, ToolCache())
        made = prepare(protocol, top, PERSONA, "p", "q")
    except Fault as fault:
        refused, made = fault, None
    if refused is not None:
        assert 400 <= refused.status < 500
        for dialect in DIALECTS:
            assert json.loads(faults.render(refused, dialect, "q"))["error"]["message"]
    elif made is not None and made.local is None:
        json.loads(b"".join(bytes(memoryview(piece)) for piece in made.pieces))


@EASY
@given(text=st.text(max_size=200) | JSON.map(json.dumps), cut=st.booleans())
def test_any_arguments_are_repaired_to_something_valid_or_left(text: str, cut: bool) -> None:
    """The repair never raises, and what it gives satisfies the schema."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": ["array", "null"]}}}
    tool: Tool = compile_tools(json.dumps([{"name": "t", "input_schema": schema}]).encode()).tools["t"]
    fixed = repair(text, tool, cut=cut)
    assert fixed is None or not tool.errors(fixed)
    assert isinstance(as_object(text), dict)


EVENTS = """message_start message_delta message_stop content_block_start content_block_delta content_block_stop error
    ping response.created response.completed response.incomplete response.failed response.output_item.added
    response.output_item.done response.function_call_arguments.delta response.output_text.delta"""
KINDS_OF_EVENTS = st.sampled_from(tuple(EVENTS.split()))
CALL = st.fixed_dictionaries({}, optional={"index": JSON, "id": JSON, "function": PART | JSON, "type": JSON})
DELTA = st.fixed_dictionaries(
    {},
    optional={"content": JSON, "tool_calls": st.lists(CALL, max_size=2) | JSON, "reasoning": JSON, "stop_reason": JSON}
    | dict.fromkeys(("type", "partial_json", "text"), JSON),
)
CHOICE = st.fixed_dictionaries({}, optional={"index": JSON, "delta": DELTA | JSON, "finish_reason": JSON, "text": JSON})
USAGE = st.fixed_dictionaries({}, optional=dict.fromkeys(("prompt_tokens", "input_tokens", "output_tokens"), JSON))
RESPONSE = st.fixed_dictionaries({}, optional={"id": JSON, "output": st.lists(PART) | JSON, "usage": USAGE | JSON})
EVENT = st.fixed_dictionaries(
    {},
    optional={
        "type": KINDS_OF_EVENTS | JSON,
        "choices": st.lists(CHOICE, max_size=2) | JSON,
        "usage": USAGE | JSON,
        "message": st.fixed_dictionaries({}, optional={"usage": USAGE | JSON}) | JSON,
        "delta": DELTA | JSON,
        "content_block": PART | JSON,
        "item": PART | JSON,
        "response": RESPONSE | JSON,
        "output_index": JSON,
        "index": JSON,
        "sequence_number": JSON,
        "error": JSON,
        "model": JSON,
    },
)


def replies() -> list[Reply]:
    """Every reply that there is, the ones around others included."""
    tools = [{"name": "t", "input_schema": {"type": "object"}}]

    def strict(dialect: Dialect) -> Strict:
        body = tops.split(json.dumps({"messages": [], "input": [], "tools": tools}).encode())
        rules = rules_of(body, ToolCache())
        assert rules is not None
        return Strict(rules, "/", tops.join(body), dialect, lambda: "id")

    found = Found("q", [{"file_id": "f", "filename": "n", "score": 1, "attributes": {}, "content": []}], True)
    plain = [make("s", "a", "q") for make in (ChatReply, CompletionReply, MessagesReply, ResponsesReply, FimReply)]
    return [
        *plain,
        InfillReply("s", "a", "q"),
        StoppingReply(ChatReply("s", "a", "q"), ["x"]),
        StoppingMessages(MessagesReply("s", "a", "q"), ["x"]),
        StoppingMessages(StrictMessagesReply("s", "a", "q", strict("anthropic")), ["x"]),
        CitingReply(ChatReply("s", "a", "q"), found),
        KeepingReply(CitingReply(ResponsesReply("s", "a", "q"), found), lambda response: None),
        StrictChatReply("s", "a", "q", True, strict("openai")),
        StoppingReply(StrictChatReply("s", "a", "q", True, strict("openai")), ["x"]),
        StrictMessagesReply("s", "a", "q", strict("anthropic")),
        StrictResponsesReply("s", "a", "q", {}, strict("responses")),
    ]


@EASY
@given(answer=EVENT | RESPONSE | JSON, second=EVENT | RESPONSE | JSON)
def test_any_whole_answer_is_passed_on_or_faulted(answer: object, second: object) -> None:
    """A reply raises nothing but a Fault, whatever an engine answers, first or when it is asked again."""
    for reply in replies():
        with suppress(Fault, *MALFORMED):
            reply.body(json.dumps(answer).encode())
            if reply.again is not None:
                reply.retried(json.dumps(second).encode())


@EASY
@given(events=st.lists(EVENT | JSON, max_size=5))
def test_any_events_are_relayed_or_faulted(events: list[object]) -> None:
    """The same for streams of events that are nearly right."""
    raw = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    for reply in replies():
        try:
            reply.feed(raw)
            reply.end()
        except (Fault, *MALFORMED) as exc:
            broken = reply.broken(exc if isinstance(exc, Fault) else malformed())
            assert broken.endswith(b"\n\n") or reply.complete


@pytest.mark.parametrize("path", ["chat/completions", "messages", "responses", "completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_nonsense_of_an_engine_is_a_502_in_the_protocols_envelope(
    tmp_path: Path, path: str, stream: bool
) -> None:
    """Wrong types deep inside of an answer: an error that says whose it is, not a crash and not half an answer."""
    wrong = [
        {"choices": [{"index": [], "delta": {"content": 5}}]},
        {"type": "response.completed", "response": {"usage": 5}},
    ]
    wrong += [{"type": "message_delta", "delta": [], "usage": {"output_tokens": "x"}}, {"choices": 5, "output": 5}, 5]
    with FakeEngine() as engine:
        async with running(tmp_path, engine, personas={"p": {"engine": "big", "tools": "strict"}}) as tower:
            for answer in wrong:
                data = json.dumps(answer).encode()
                engine.script(raw=[b"data: " + data + b"\n\n" if stream else data])
                tool = {"type": "function", "function": {"name": "t"}}
                said = [{"role": "user", "content": "x"}]
                body = {"model": "p", "messages": said, "input": said, "prompt": "x", "max_tokens": 9, "stream": stream}
                with suppress(httpx.RemoteProtocolError):  # a broken stream is cut
                    seen = await tower.client.post(f"/v1/{path}", json=body | {"tools": [tool]})
                    assert seen.status_code in (200, 502), seen.text
                    assert "internal_error" not in seen.text


@EASY
@given(pieces=st.lists(st.binary(max_size=60) | BODY.map(lambda b: b"data: " + json.dumps(b).encode() + b"\n\n")))
@example(pieces=[b"\n\n"])
def test_any_engine_stream_is_relayed_or_faulted(pieces: list[bytes]) -> None:
    """A reply raises nothing but a Fault, whatever bytes an engine sends."""
    for make in (ChatReply, MessagesReply, ResponsesReply, FimReply, InfillReply):
        for reply in (make("s", "a", "q"), StoppingReply(make("s", "a", "q"), ["x"])):
            broken = b""
            try:
                for piece in pieces:
                    reply.feed(piece)
                reply.end()
            except Fault as fault:
                broken = reply.broken(fault)
            assert not broken or broken.endswith(b"\n\n")


async def test_gateway_never_answers_5xx_to_bad_input(tmp_path: Path) -> None:
    """A few hundred odd bodies over a real socket, on every model route."""
    paths = ("chat/completions", "completions", "messages", "responses", "embeddings", "rerank", "fim/completions")
    with FakeEngine() as engine:
        async with running(tmp_path, engine, personas={"p": {"engine": "big", "tools": "strict"}}) as tower:
            for number, raw in enumerate(odd_bodies()):
                path = paths[number % len(paths)]
                answer: httpx.Response = await tower.client.post(f"/v1/{path}", content=raw)
                assert answer.status_code < 500, (path, raw, answer.text)
                if answer.status_code >= 400:
                    assert isinstance(answer.json()["error"]["message"], str)


def odd_bodies() -> list[bytes]:
    """Broken JSON, wrong types in every field, deep nesting, odd encodings."""
    found = [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": 5}', b'{"model": "p"', b"[" * 5000, b'{"a":' * 3000]
    for value in (None, True, -1, 1e308, "", "x", [], {}, [None], [[]], [{}], {"a": 1}, "\ud800x"):
        for name in ("messages", "input", "prompt", "tools", "stop", "stream", "model", "tool_choice", "documents"):
            body = {"model": "p", "messages": [{"role": "user", "content": "x"}], "input": "x", "max_tokens": 3}
            found.append(json.dumps(body | {name: value}).encode())
    return found
