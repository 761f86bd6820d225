"""Citations: the tool taken out, passages behind the client's text, annotations in both protocols."""

from __future__ import annotations

import json
from typing import Any

from openai.types.chat.chat_completion_message import Annotation
from openai.types.responses import ResponseFileSearchToolCall
from openai.types.responses.response_output_text import AnnotationFileCitation

from lmtower.wire import citing, sse, top
from lmtower.wire.chat import ChatReply
from lmtower.wire.citing import CitingReply, Found
from lmtower.wire.responses import ResponsesReply


def hit(name: str, text: str) -> dict[str, Any]:
    return {
        "file_id": f"file-{name}",
        "filename": name,
        "score": 0.5,
        "attributes": {},
        "content": [{"type": "text", "text": text}],
    }


HITS = [hit("a.pdf", "Alpha."), hit("b.md", "Beta.")]
ANSWER = "Alpha is first [1]. Both [1, 2]. Wrong [7]."


def fields(body: dict[str, Any]) -> top.Top:
    return top.split(json.dumps(body).encode())


def test_marks_become_annotations_of_both_protocols() -> None:
    """[1] and [1, 2] become citations at their places; numbers without a passage do not."""
    responses = citing.responses_annotations(ANSWER, HITS)
    assert [(one["index"], one["filename"]) for one in responses] == [(18, "a.pdf"), (31, "a.pdf"), (31, "b.md")]
    assert all(AnnotationFileCitation.model_validate(one) for one in responses)
    chat = citing.chat_annotations(ANSWER, HITS)
    assert all(Annotation.model_validate(one) for one in chat)
    place = chat[0]["url_citation"]
    assert ANSWER[place["start_index"] : place["end_index"]] == "[1]"


def test_search_call_carries_results_only_when_asked_for() -> None:
    """The output item is OpenAI's, with results when the request includes them."""
    assert citing.search_call("fs_1", Found("q", HITS, False))["results"] is None
    parsed = ResponseFileSearchToolCall.model_validate(citing.search_call("fs_1", Found("q", HITS, True)))
    assert [one.text for one in parsed.results or []] == ["Alpha.", "Beta."]


def test_tool_is_taken_out_and_its_options_kept() -> None:
    """No engine knows file_search: it goes, other tools stay; without others the tool fields go too."""
    search = {"type": "file_search", "vector_store_ids": ["vs_1"], "max_num_results": 3}
    other = {"type": "function", "name": "f"}
    body = fields({"tools": [search, other], "tool_choice": "auto"})
    assert citing.take_tool(body) == (("vs_1",), {"max_num_results": 3})
    assert top.value(body, "tools") == [other]
    alone = fields({"tools": [search], "tool_choice": "auto", "model": "m"})
    citing.take_tool(alone)
    assert list(alone) == ["model"]
    assert citing.take_tool(fields({"tools": [other]})) is None


def test_passages_go_behind_the_last_user_message_and_nothing_before_changes() -> None:
    """Everything before the last message keeps its bytes: the engine's cache stays valid."""
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "old"},
        {"role": "user", "content": "new?"},
    ]
    body = fields({"messages": messages})
    before = bytes(memoryview(body["messages"]))
    assert citing.question(body, "messages") == "new?"
    citing.add_passages(body, "messages", "PASSAGES")
    after = bytes(body["messages"])
    assert json.loads(after) == [*messages[:2], {"role": "user", "content": "new?\n\nPASSAGES"}]
    shared = before.replace(b", {", b",{").index(b'"new?')
    assert (
        after.replace(b'{"role":"user","content":"new', b'{"role": "user", "content": "new')[:shared]
        == before.replace(b", {", b",{")[:shared]
    )


def test_every_form_of_input_takes_passages() -> None:
    """A plain input text, content parts of chat and of responses."""
    plain = fields({"input": "q"})
    citing.add_passages(plain, "input", "P")
    assert (citing.question(fields({"input": "q"}), "input"), top.value(plain, "input")) == ("q", "q\n\nP")
    for field, kind in (("messages", "text"), ("input", "input_text")):
        body = fields({field: [{"role": "user", "content": [{"type": kind, "text": "q"}]}]})
        assert citing.question(body, field) == "q"
        citing.add_passages(body, field, "P")
        assert top.value(body, field)[0]["content"][-1] == {"type": kind, "text": "P"}


def test_chat_answers_are_annotated_streamed_or_not() -> None:
    """Annotations on the message; in a stream as a delta of their own before the finish reason."""
    found = Found("q", HITS, False)
    reply = CitingReply(ChatReply("served", "asked", "r"), found)
    body = {"model": "served", "choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER}}]}
    message = json.loads(reply.body(json.dumps(body).encode()))["choices"][0]["message"]
    assert len(message["annotations"]) == 3
    deltas: list[tuple[dict[str, Any], str | None]] = [
        ({"content": ANSWER[:20]}, None),
        ({"content": ANSWER[20:]}, None),
        ({}, "stop"),
    ]
    stream = b"".join(
        b"data: "
        + json.dumps(
            {"model": "served", "choices": [{"index": 0, "delta": d, "finish_reason": f}]}, separators=(",", ":")
        ).encode()
        + b"\n\n"
        for d, f in deltas
    )
    reply = CitingReply(ChatReply("served", "asked", "r"), found)
    out = b"".join(reply.feed(bytes([byte])) for byte in stream + sse.DONE) + reply.end()
    choices = [json.loads(sse.data_of(e) or b"")["choices"][0] for e in sse.split(out) if b"[DONE]" not in e]
    assert reply.complete
    assert [bool(c["delta"].get("annotations")) for c in choices] == [False, False, True, False]
    assert [c["finish_reason"] for c in choices] == [None, None, None, "stop"]


def responses_stream() -> bytes:
    part = {"type": "output_text", "text": ANSWER, "annotations": []}
    item = {"type": "message", "id": "m1", "role": "assistant", "content": [part]}
    place = {"item_id": "m1", "output_index": 0, "content_index": 0}
    told: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": {"id": "resp_1", "output": []}}),
        ("response.output_item.added", {"output_index": 0, "item": {**item, "content": []}}),
        ("response.output_text.delta", {**place, "delta": ANSWER}),
        ("response.output_text.done", {**place, "text": ANSWER}),
        ("response.content_part.done", {**place, "part": part}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        (
            "response.completed",
            {"response": {"id": "resp_1", "output": [item], "usage": {"input_tokens": 5, "output_tokens": 2}}},
        ),
    ]
    return b"".join(
        b"event: "
        + kind.encode()
        + b"\ndata: "
        + json.dumps({"type": kind, "sequence_number": n, **body}).encode()
        + b"\n\n"
        for n, (kind, body) in enumerate(told)
    )


def test_responses_stream_has_the_search_first_and_annotations_in_every_copy() -> None:
    """The search's item is output 0, the message moves to 1, numbers go up by one, completed stays last."""
    reply = CitingReply(ResponsesReply("served", "asked", "r"), Found("q", HITS, True))
    out = b"".join(reply.feed(bytes([byte])) for byte in responses_stream()) + reply.end()
    told = [json.loads(sse.data_of(event) or b"") for event in sse.split(out)]
    kinds = [one["type"] for one in told]
    assert reply.complete
    assert [one["sequence_number"] for one in told] == list(range(len(told)))
    assert kinds[:7] == [
        "response.created",
        "response.output_item.added",
        "response.file_search_call.in_progress",
        "response.file_search_call.searching",
        "response.file_search_call.completed",
        "response.output_item.done",
        "response.output_item.added",
    ]
    assert kinds.count("response.output_text.annotation.added") == 3
    assert kinds[-1] == "response.completed"
    assert {one["output_index"] for one in told if one.get("item_id") == "m1"} == {1}
    output = told[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["file_search_call", "message"]
    assert len(output[1]["content"][0]["annotations"]) == 3
    assert reply.usage.input_tokens == 5
