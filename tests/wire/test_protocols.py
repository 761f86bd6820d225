"""Messages and responses: merging, and streams that give the same events however the network cuts them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from lmtower.wire import messages, responses, server_tools
from lmtower.wire.faults import Fault, Overflow
from lmtower.wire.messages import MessagesReply
from lmtower.wire.reply import Reply
from lmtower.wire.responses import ResponsesReply
from lmtower.wire.stops import Cut, StoppingReply, split
from lmtower.wire.stops_messages import StoppingMessages


def sse(*events: dict[str, Any], named: bool = True) -> bytes:
    lines = []
    for event in events:
        name = f"event: {event['type']}\n" if named else ""
        lines.append(f"{name}data: {json.dumps(event)}\n\n")
    return "".join(lines).encode()


MESSAGE = {"id": "m", "content": [], "model": "served", "usage": {"input_tokens": 5, "output_tokens": 0}}
MESSAGE_STREAM = sse(
    {"type": "message_start", "message": MESSAGE},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "served é"}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "stop"},
        "usage": {"input_tokens": 3, "output_tokens": 7, "cache_read_input_tokens": 2},
    },
    {"type": "message_stop"},
)
RESPONSE = {"id": "r", "object": "response", "created_at": 4, "model": "served", "instructions": "secret", "output": []}
RESPONSE_STREAM = (
    sse(
        {"type": "response.created", "sequence_number": 0, "response": RESPONSE | {"status": "in_progress"}},
        {"type": "response.output_text.delta", "sequence_number": 1, "delta": "hi"},
        {
            "type": "response.completed",
            "sequence_number": 2,
            "response": RESPONSE | {"status": "completed", "usage": {"input_tokens": 5, "output_tokens": 7}},
        },
        {"type": "response.output_text.delta", "sequence_number": 3, "delta": "late"},
    )
    + b"data: [DONE]\n\n"
)


def through(reply: Reply, data: bytes, size: int) -> bytes:
    return b"".join(reply.feed(data[at : at + size]) for at in range(0, len(data), size)) + reply.end()


def parsed(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in data.decode().split("\n") if line.startswith("data: {")]


@pytest.mark.parametrize(
    ("make", "stream"),
    [
        (lambda: MessagesReply("served", "asked", "q"), MESSAGE_STREAM),
        (lambda: StoppingMessages(MessagesReply("served", "asked", "q"), ["never"]), MESSAGE_STREAM),
        (lambda: ResponsesReply("served", "asked", "q", {"instructions": "mine"}), RESPONSE_STREAM),
        (lambda: StoppingReply(ResponsesReply("served", "asked", "q"), ["never"]), RESPONSE_STREAM),
    ],
)
def test_stream_cut_at_every_byte_gives_the_same_events(make: Callable[[], Reply], stream: bytes) -> None:
    """Every piece size from one byte on."""
    whole = parsed(through(make(), stream, len(stream)))
    for size in range(1, 120):
        assert parsed(through(make(), stream, size)) == whole
    assert whole


def _said(*texts: str) -> bytes:
    deltas = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}} for text in texts
    ]
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    return sse({"type": "message_start", "message": MESSAGE}, start, *deltas)


@pytest.mark.parametrize("size", [20, 300, 10_000])
def test_tokens_of_a_message_that_a_stop_sequence_ended_are_counted_however_it_was_cut(size: int) -> None:
    """The engine's own number never comes: one for every delta, those of the same read included."""
    reply = StoppingMessages(MessagesReply("served", "asked", "q"), ["STOP"])
    events = parsed(through(reply, _said("one ", "two ", "three ", "STOP"), size))
    assert events[-2]["usage"]["output_tokens"] == 4
    assert reply.usage.output_tokens == 4


def test_messages_stream_says_the_asked_name_and_whole_usage() -> None:
    """OpenAI's stop reason is translated, text that looks like the model's name is left alone."""
    reply = MessagesReply("served", "asked", "q")
    events = parsed(through(reply, MESSAGE_STREAM, 50))
    assert events[0]["message"]["model"] == "asked"
    assert {"type", "role"} <= events[0]["message"].keys()
    assert events[2]["delta"]["text"] == "served é"
    assert events[-2]["delta"]["stop_reason"] == "end_turn"
    assert events[-2]["usage"]["cache_read_input_tokens"] == 2
    assert (reply.usage.input_tokens, reply.usage.cached_tokens, reply.usage.output_tokens) == (5, 2, 7)
    assert reply.complete


@pytest.mark.parametrize(
    ("reason", "sequence", "said"),
    [
        ("end_turn", "\n\n", "stop_sequence"),  # llama.cpp
        ("end_turn", None, "end_turn"),
        ("stop", None, "end_turn"),
        ("length", None, "max_tokens"),
        ("tool_calls", None, "tool_use"),
        ("something new", None, "end_turn"),
    ],
)
def test_stop_reason_is_one_of_the_protocol_and_names_the_sequence(
    reason: str, sequence: str | None, said: str
) -> None:
    """Streamed or whole, whatever word the engine used."""
    ended = {"stop_reason": reason, "stop_sequence": sequence}
    whole = json.loads(MessagesReply("s", "a", "q").body(json.dumps({"content": [], **ended}).encode()))
    event = {"type": "message_delta", "delta": ended, "usage": {}}
    [streamed] = parsed(
        MessagesReply("s", "a", "q").feed(b"event: message_delta\ndata: %b\n\n" % json.dumps(event).encode())
    )
    for told in (whole, streamed["delta"]):
        assert (told["stop_reason"], told["stop_sequence"]) == (said, sequence)


def test_messages_events_without_a_name_get_one() -> None:
    """The SDK's decoder drops events without an ``event:`` line."""
    unnamed = sse({"type": "message_start", "message": MESSAGE}, {"type": "message_stop"}, named=False)
    out = through(MessagesReply("served", "asked", "q"), unnamed, 9)
    assert out.count(b"event: message_") == 2


def test_messages_error_event_is_raised_as_a_fault() -> None:
    """vLLM's ``internal_error`` is not a word of the protocol: the gateway writes its own event."""
    reply = MessagesReply("served", "asked", "q")
    with pytest.raises(Fault) as caught:
        reply.feed(sse({"type": "error", "error": {"type": "internal_error", "message": "boom secret"}}))
    told = reply.broken(caught.value)
    assert told.startswith(b"event: error\n")
    assert b"api_error" in told
    assert b"secret" not in told


def test_responses_stream_ends_with_completed_and_never_echoes_the_prompt() -> None:
    """Nothing follows response.completed; usage has its details; the client's instructions come back."""
    reply = ResponsesReply("served", "asked", "q", {"instructions": "mine"})
    events = parsed(through(reply, RESPONSE_STREAM, 33))
    assert [event["type"] for event in events] == [
        "response.created",
        "response.output_text.delta",
        "response.completed",
    ]
    last = events[-1]["response"]
    assert (last["model"], last["instructions"]) == ("asked", "mine")
    assert last["usage"]["input_tokens_details"] == {"cached_tokens": 0}
    assert last["usage"]["total_tokens"] == 12
    assert reply.complete


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(400, "context_length_exceeded", "long", tokens=Overflow(9, 4)), "context_length_exceeded"),
        (Fault(429, "insufficient_quota", "spent"), "insufficient_quota"),
        (Fault(429, "rate_limit_exceeded", "slow"), "rate_limit_exceeded"),
        (Fault(502, "engine_unavailable", "gone"), "server_error"),
    ],
)
def test_broken_responses_stream_ends_with_failed_and_a_known_code(fault: Fault, code: str) -> None:
    """Codex decides by the code; the id is that of the response that was begun."""
    reply = ResponsesReply("served", "asked", "q")
    reply.feed(RESPONSE_STREAM[: RESPONSE_STREAM.index(b"\n\n") + 2])
    [event] = parsed(reply.broken(fault))
    assert (event["type"], event["sequence_number"]) == ("response.failed", 1)
    assert event["response"]["error"]["code"] == code
    assert event["response"]["id"] == "r"


@pytest.mark.parametrize(
    ("system", "prompt", "expected"),
    [
        (None, None, None),
        (None, "P", "P"),
        ('"A"', "P", "P\n\nA"),
        ('""', "P", "P"),
        ('"x-anthropic-billing-header: a=1;\\nA"', "P", "P\n\nA"),
        ('"x-anthropic-billing-header: a=1;"', None, None),
        ('[{"type":"text","text":"A"}]', None, [{"type": "text", "text": "A"}]),
        ('[{"type":"text","text":"A"}]', "P", [{"type": "text", "text": "P\n\n"}, {"type": "text", "text": "A"}]),
        ('[{"type":"text","text":"x-anthropic-billing-header: a"}]', "P", [{"type": "text", "text": "P"}]),
        ("[]", "P", [{"type": "text", "text": "P"}]),
    ],
)
def test_system_is_merged_in_its_own_form(system: str | None, prompt: str | None, expected: object) -> None:
    """A string stays a string, blocks stay blocks, the attribution block goes."""
    found = messages.merge_system(None if system is None else system.encode(), prompt)
    assert (None if found is None else json.loads(found)) == expected


def test_instructions_take_in_the_system_items_at_the_head() -> None:
    """A second system message breaks current chat templates."""
    items = b'[{"role":"developer","content":[{"type":"input_text","text":"D"}]},{"role":"user","content":"u"}]'
    assert responses.merge_instructions("I", items, "P") == ("P\n\nI\n\nD", b'[{"role":"user","content":"u"}]')
    assert responses.merge_instructions(None, b'"text"', "P") == ("P", b'"text"')
    assert responses.merge_instructions(None, items, None) == (None, items)


FUNCTION = '{"type":"function","name":"f"}'
CUSTOM = '{"type":"custom","name":"patch"}'
SEARCH = '{"type":"web_search_20250305","name":"web_search","max_uses":5}'
OWN = '{"name":"f","input_schema":{}}'


@pytest.mark.parametrize(
    ("anthropic", "tools", "choice", "kept", "dropped", "holds"),
    [
        (False, ['{"type":"web_search"}', FUNCTION, CUSTOM], "auto", [FUNCTION, CUSTOM], ["web_search"], True),
        (False, ['{"type":"web_search"}', FUNCTION], {"type": "web_search"}, [FUNCTION], ["web_search"], False),
        (False, ['{"type":"image_generation"}'], "auto", [], ["image_generation"], False),
        (False, [FUNCTION], {"type": "function", "name": "f"}, [FUNCTION], [], True),
        (True, [SEARCH, OWN], {"type": "auto"}, [OWN], ["web_search_20250305"], True),
        (True, [SEARCH, OWN], {"type": "tool", "name": "web_search"}, [OWN], ["web_search_20250305"], False),
        (True, [SEARCH, OWN], {"type": "tool", "name": "f"}, [OWN], ["web_search_20250305"], True),
        (True, [SEARCH], {"type": "any"}, [], ["web_search_20250305"], False),
        (True, [OWN, '{"type":"custom","name":"g","input_schema":{}}', "5"], None, None, [], True),
    ],
)
def test_tools_that_run_elsewhere_are_dropped_with_the_choice_of_them(
    anthropic: bool, tools: list[str], choice: object, kept: list[str] | None, dropped: list[str], holds: bool
) -> None:
    """Engines refuse what they cannot run; Claude Code's web search is such a request."""
    raw = f"[{','.join(tools)}]".encode()
    expected = raw if kept is None else f"[{','.join(kept)}]".encode()
    assert server_tools.without(raw, choice, anthropic=anthropic) == (expected, dropped, holds)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one STOP two", ["STOP"], "one "),
        ("one STO two", ["STOP"], "one STO two"),
        ("aab", ["ab"], "a"),
        ("xSTSTOP", ["STOP"], "xST"),
        ("a\n\nb", ["\n\n", "\n"], "a"),
        ("ends with ST", ["STOP"], "ends with ST"),
    ],
)
def test_stop_string_is_found_over_any_cut(text: str, stops: list[str], expected: str, size: int) -> None:
    """The text before the first stop string, and nothing is lost when none comes."""
    cut = Cut(stops)
    found = "".join(cut.feed(text[at : at + size]) for at in range(0, len(text), size)) + cut.rest()
    assert found == expected


def test_engine_gets_four_stop_strings_at_most() -> None:
    """Up to four are the engine's business; beyond, the gateway enforces all of them."""
    assert split(["a", "b", "a", ""], 4) == (("a", "b"), ())
    assert split(list("abcdef"), 4) == (tuple("abcd"), tuple("abcdef"))
