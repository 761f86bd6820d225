"""Chat streams cut at every byte: what the client gets does not depend on how the network cut them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmtower.wire import sse
from lmtower.wire.chat import ChatReply
from lmtower.wire.faults import Fault


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    body = {"id": "c1", "object": "chat.completion.chunk", "model": "served", "choices": choices, **more}
    return b"data: " + json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, "prompt_tokens_details": {"cached_tokens": 8}}
TOOL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
STREAM = b"".join(
    (
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning": "let me think"}),
        b": engine comment\n\n",
        chunk({"content": 'a "model":"served" é \n\n done'}),
        chunk({"tool_calls": [TOOL]}, finish="tool_calls"),
        chunk(usage=USAGE),
        sse.DONE,
    )
)


def relayed(stream: bytes, cuts: list[int], wants_usage: bool = True) -> tuple[bytes, ChatReply]:
    reply = ChatReply("served", "asked", "req_1", wants_usage)
    out, at = b"", 0
    for cut in [*cuts, len(stream)]:
        out += reply.feed(stream[at:cut])
        at = cut
    return out + reply.end(), reply


def parsed(out: bytes) -> list[Any]:
    return [json.loads(data) for event in sse.split(out) if (data := sse.data_of(event)) and data != b"[DONE]"]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_stream_cut_at_every_byte_is_relayed_the_same(ending: bytes) -> None:
    """Two pieces, cut anywhere, and single bytes: the same bytes out, complete, the same usage."""
    stream = STREAM.replace(b"\n", ending)
    whole, reply = relayed(stream, [])
    assert reply.complete
    for cut in range(1, len(stream)):
        out, reply = relayed(stream, [cut])
        assert (out, reply.complete, reply.usage.cached_tokens) == (whole, True, 8)
    single, reply = relayed(stream, list(range(1, len(stream))))
    assert (single, reply.usage.output_tokens) == (whole, 4)


def test_stream_is_mended_for_every_client() -> None:
    """Asked name, both reasonings, finish apart from tool deltas, usage alone with no choices, [DONE] last."""
    out, reply = relayed(STREAM, [])
    chunks = parsed(out)
    assert {c["model"] for c in chunks} == {"asked"}
    assert chunks[1]["choices"][0]["delta"] == {"reasoning": "let me think", "reasoning_content": "let me think"}
    assert chunks[2]["choices"][0]["delta"]["content"] == 'a "model":"served" é \n\n done'
    assert [
        (bool(c["choices"][0]["delta"].get("tool_calls")), c["choices"][0]["finish_reason"]) for c in chunks[3:5]
    ] == [
        (True, None),
        (False, "tool_calls"),
    ]
    assert (chunks[5]["choices"], chunks[5]["usage"]) == ([], USAGE)
    assert out.endswith(sse.DONE)
    assert (reply.usage.input_tokens, reply.events) == (9, 4)


def test_usage_merged_with_the_last_choice_is_taken_apart() -> None:
    """Some engines put usage on the finish chunk: clients get it alone, or not at all."""
    stream = chunk({"content": "x"}) + chunk({}, finish="stop", usage=USAGE) + sse.DONE
    asked = parsed(relayed(stream, [])[0])
    assert [("usage" in c, bool(c["choices"])) for c in asked] == [(False, True), (False, True), (True, False)]
    silent, reply = relayed(stream, [], wants_usage=False)
    assert [("usage" in c, bool(c["choices"])) for c in parsed(silent)] == [(False, True), (False, True)]
    assert reply.usage.output_tokens == 4


def test_truncated_stream_is_not_complete_and_an_error_chunk_is_a_fault() -> None:
    """Without [DONE] the answer is not complete; the engine's error event becomes ours."""
    _, reply = relayed(STREAM[:-20], [])
    assert not reply.complete
    reply = ChatReply("served", "asked", "req_1")
    with pytest.raises(Fault) as caught:
        reply.feed(b'data: {"error":{"message":"boom","type":"InternalServerError","code":500}}\n\n')
    assert caught.value.code == "engine_error"
    assert json.loads(sse.data_of(reply.broken(caught.value)) or b"")["error"]["code"] == "engine_error"


def test_body_is_renamed_and_mended() -> None:
    """The whole answer: asked name, both reasonings, null content beside tool calls, usage taken."""
    message = {"role": "assistant", "content": "", "reasoning": "hm", "tool_calls": [TOOL]}
    body = {"id": "c", "model": "served", "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    reply = ChatReply("served", "asked", "req_1")
    answer = json.loads(reply.body(json.dumps({**body, "usage": USAGE}, separators=(",", ":")).encode()))
    assert answer["model"] == "asked"
    assert answer["choices"][0]["message"]["content"] is None
    assert answer["choices"][0]["message"]["reasoning_content"] == "hm"
    assert (reply.usage.input_tokens, reply.usage.cached_tokens, reply.usage.output_tokens) == (9, 8, 4)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'{"a":'])
def test_answer_that_is_no_json_is_a_502(body: bytes) -> None:
    """An engine that answers nonsense is the tower's fault, not the client's."""
    with pytest.raises(Fault) as caught:
        ChatReply("served", "asked", "req_1").body(body)
    assert caught.value.status == 502
