"""Conversations that go on: what an earlier request said is not read again, and nothing slips by for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtower.gateway.beginnings import Beginnings
from lmtower.wire import top as tops
from tests.fakes.engine import FakeEngine
from tests.gateway.support import running

LONG = 'line "quoted"\n' * 3000
parts = st.dictionaries(
    st.sampled_from(["role", "type", "content", "name"]), st.text(max_size=20) | st.none(), max_size=3
)
messages = st.builds(
    lambda first, rest: {**first, **rest}, st.sampled_from([{"role": "user"}, {"type": "message"}]), parts
)
layouts = st.sampled_from([{}, {"separators": (",", ":")}, {"ensure_ascii": False}])


def body_of(conversation: list[Any], **more: Any) -> dict[str, Any]:
    return {"model": "plan", "messages": [{"role": "system", "content": LONG}, *conversation], **more}


def step(beginnings: Beginnings, raw: bytes, client: str = "c") -> int:
    """Open a body, compare it with a plain look at it, keep it. Returns how many messages were known."""
    opened = beginnings.open(client, "messages", raw)
    top = opened.abridged.top
    assert {name: bytes(value) for name, value in top.items()} == {
        name: bytes(value) for name, value in tops.split(raw).items()
    }
    beginnings.keep(opened, len(json.loads(bytes(opened.abridged.short("messages")))), None)
    return opened.said


@given(st.lists(st.lists(messages, max_size=3), max_size=4), layouts)
def test_growing_conversation_is_known_up_to_its_last_request(steps: list[list[Any]], layout: dict[str, Any]) -> None:
    """Each request begins with all of the one before."""
    beginnings, conversation, before = Beginnings(), [{"role": "user", "content": "go"}], 0
    for new in [[], *steps]:
        conversation += new
        said = step(beginnings, json.dumps(body_of(conversation, stream=True), **layout).encode())
        assert said == before
        before = len(conversation) + 1


@given(st.lists(messages, min_size=6, max_size=6), st.integers(0, 5), messages, layouts)
def test_changed_message_is_read_again(
    conversation: list[Any], at: int, other: dict[str, Any], layout: dict[str, Any]
) -> None:
    """Nothing from a change on counts as known; the places before the last messages do."""
    beginnings = Beginnings()
    step(beginnings, json.dumps(body_of(conversation), **layout).encode())
    changed = [*conversation[:at], {"role": "user", "content": "longer than any that is drawn"}, other]
    said = step(beginnings, json.dumps(body_of(changed), **layout).encode())
    assert said <= at + 1


def test_places_before_the_last_messages_are_known() -> None:
    """A client that rewrites its last two messages has the others known."""
    beginnings = Beginnings()
    turns = [{"role": "user", "content": [{"type": "text", "text": f"{number}"}]} for number in range(9)]
    step(beginnings, json.dumps(body_of(turns)).encode())
    assert step(beginnings, json.dumps(body_of([*turns[:7], {"role": "user", "content": "new"}])).encode()) == 8


@pytest.mark.parametrize(
    "tail",
    [
        b'{"role":"user","content":"b"}]},{"role":"user"}]}',  # the list ends too early
        b'{"role":"user"}',  # it never ends
        b'{"role":"user"}],"messages":[{"role":"user","content":"the last one counts"}]}',
    ],
)
def test_rest_that_is_something_else_is_read_as_a_whole(tail: bytes) -> None:
    """Broken JSON is refused as ever, and of a field that is there twice the last one counts."""
    beginnings = Beginnings()
    first = json.dumps(body_of([{"role": "user", "content": [{"role": "x"}, {"role": "y"}]}])).encode()
    step(beginnings, first)
    raw = first[:-2] + b"," + tail
    try:
        plain = tops.split(raw)
    except tops.Fault:
        with pytest.raises(tops.Fault):
            beginnings.open("c", "messages", raw)
        return
    opened = beginnings.open("c", "messages", raw)
    assert bytes(opened.abridged.top["messages"]) == bytes(plain["messages"])
    assert opened.said == 0


def test_memory_is_bounded_and_clients_are_apart() -> None:
    """The oldest leave first; nobody's bodies are compared with those of another client."""
    beginnings = Beginnings(most_bytes=400_000)
    for number in range(30):
        step(beginnings, json.dumps(body_of([{"role": "user", "content": str(number)}], user=str(number))).encode())
    assert beginnings.bytes <= 400_000
    last = json.dumps(body_of([{"role": "user", "content": "29"}], user="29")).encode()
    assert step(beginnings, last, client="other") == 0
    assert step(beginnings, last) == 2


def test_much_white_space_at_the_end_of_a_list_is_not_searched_through() -> None:
    """A little is left out of what is compared; a body with much of it is not remembered."""
    for spaces, said in ((100, 2), (100_000, 0)):
        beginnings = Beginnings()
        raw = json.dumps(body_of([{"role": "user", "content": "a"}], user=str(spaces))).encode()
        raw = raw.replace(b"}], ", b"}" + b" " * spaces + b"], ")
        assert step(beginnings, raw) == 0
        assert step(beginnings, raw) == said


async def test_image_address_behind_a_known_beginning_is_refused(tmp_path: Path) -> None:
    """Only what is new is looked at, and it is: an engine must not fetch what the tower does not allow."""
    part = {"type": "image_url", "image_url": {"url": "http://10.0.0.1/secret"}}
    with FakeEngine() as engine:
        async with running(tmp_path, engine) as tower:
            first = body_of([{"role": "user", "content": "hello"}])
            assert (await tower.client.post("/v1/chat/completions", json=first)).status_code == 200
            first["messages"].append({"role": "user", "content": [part]})
            refused = await tower.client.post("/v1/chat/completions", json=first)
    assert refused.json()["error"]["code"] == "image_url_not_allowed"


async def test_engine_gets_a_long_conversation_whole(tmp_path: Path) -> None:
    """The persona's prompt goes in front, calls are mended behind a known beginning, all else is untouched."""
    bad = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{'a': 1"}}
    with FakeEngine() as engine:
        async with running(tmp_path, engine) as tower:
            body = body_of([{"role": "user", "content": "x" * 50_000}])
            for number in range(3):
                body["messages"].append({"role": "user", "content": f"step {number} " + "é" * 20_000})
                assert (await tower.client.post("/v1/chat/completions", json=body)).status_code == 200
                sent = tower.engine.requests[-1].json["messages"]
                assert sent[1:] == body["messages"][1:]
                assert sent[0]["content"] == "You plan.\n\n" + LONG
            body["messages"].append({"role": "assistant", "content": None, "tool_calls": [bad]})
            assert (await tower.client.post("/v1/chat/completions", json=body)).status_code == 200
            sent = tower.engine.requests[-1].json["messages"]
    assert sent[1:-1] == body["messages"][1:-1]
    assert isinstance(json.loads(sent[-1]["tool_calls"][0]["function"]["arguments"]), dict)
