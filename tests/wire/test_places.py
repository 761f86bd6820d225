"""Indexes of a responses stream, for engines that leave them out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmtower.wire import sse
from lmtower.wire.responses import ResponsesReply


def event(kind: str, **fields: Any) -> bytes:
    """As llama.cpp writes it: no sequence number, no index."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


STREAM = [
    event("response.created", response={"id": "resp_1", "object": "response", "status": "in_progress"}),
    event("response.output_item.added", item={"id": "rs_1", "type": "reasoning", "summary": []}),
    event("response.reasoning_text.delta", item_id="rs_1", delta="hm"),
    event("response.output_item.done", item={"id": "rs_1", "type": "reasoning", "summary": []}),
    event("response.output_item.added", item={"id": "msg_1", "type": "message", "content": []}),
    event("response.content_part.added", item_id="msg_1", part={"type": "output_text", "text": ""}),
    event("response.output_text.delta", item_id="msg_1", delta="Hi"),
    event("response.content_part.added", item_id="msg_1", part={"type": "output_text", "text": ""}),
    event("response.output_text.delta", item_id="msg_1", delta="!"),
    event("response.output_item.added", item={"id": "fc_1", "type": "function_call", "arguments": ""}),
    event("response.function_call_arguments.delta", item_id="fc_1", delta="{}"),
    event("response.output_item.done", item={"id": "msg_1", "type": "message", "content": []}),
    event("response.completed", response={"id": "resp_1", "status": "completed", "output": []}),
]
PLACES = [
    (None, None), (0, None), (0, 0), (0, None), (1, None), (1, 0), (1, 0), (1, 1), (1, 1), (2, None), (2, None),
    (1, None), (None, None),
]  # fmt: skip


@pytest.mark.parametrize("size", [1, 7, 100, 100_000])
def test_events_without_indexes_get_the_place_of_their_item(size: int) -> None:
    """SDKs put the answer together by output_index and content_index, however the stream was cut."""
    reply = ResponsesReply("served", "asked", "req_1")
    data = b"".join(STREAM)
    sent = b"".join(reply.feed(data[at : at + size]) for at in range(0, len(data), size)) + reply.end()
    events = [json.loads(sse.data_of(each) or b"") for each in sse.split(sent)]
    assert [(each.get("output_index"), each.get("content_index")) for each in events] == PLACES
    assert events[0]["response"]["output"] == []


def test_indexes_of_the_engine_are_kept() -> None:
    """What vLLM says itself is right."""
    reply = ResponsesReply("served", "asked", "req_1")
    added = event("response.output_item.added", output_index=3, item={"id": "msg_1", "type": "message"})
    done = event("response.output_item.done", item={"id": "msg_1", "type": "message"})
    sent = reply.feed(added + done)
    assert [json.loads(sse.data_of(each) or b"")["output_index"] for each in sse.split(sent)] == [3, 3]
