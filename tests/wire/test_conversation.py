"""The top level and the conversation in one pass: the same as read one after the other, for any body."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtower.wire import conversation, items, top
from lmtower.wire.abridged import Marks, split
from lmtower.wire.faults import Fault
from tests.wire.test_top import layouts, texts, values

MARKS = Marks(b"m0123456789abcdef")
STEP = 16
calls = st.lists(
    st.fixed_dictionaries(
        {
            "id": texts,
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": texts, "arguments": texts | values}),
        }
    ),
    max_size=2,
)
opened = st.sampled_from([{"role": "user"}, {"role": "assistant"}, {"type": "message"}, {"type": "function_call"}])
messages = st.builds(
    lambda first, rest: {**first, **rest},
    opened,
    st.dictionaries(st.sampled_from(["content", "output", "messages", "name"]), values, max_size=3)
    | st.fixed_dictionaries({"content": st.none() | texts, "tool_calls": calls | values}),
)
conversations = st.lists(messages, max_size=5) | values
others = st.dictionaries(
    st.sampled_from(["model", "tools", "input", 'a "messages":[', "metadata", "x"]),
    values | conversations | st.fixed_dictionaries({"messages": conversations, "type": texts}),
    max_size=4,
)


def body_of(before: dict[str, Any], conversation: Any, after: dict[str, Any], layout: dict[str, Any]) -> bytes:
    return json.dumps({**before, "messages": conversation, **after}, **layout).encode()


def same(raw: bytes, *, step: int = STEP) -> bool:
    """Read a body in both ways and compare. Returns whether the conversation was read with the top level."""
    try:
        plain = top.split(raw)
    except Fault:
        with pytest.raises(Fault):
            conversation.split(raw, "messages", items.read_chat, MARKS.all)
        with pytest.raises(Fault):
            split(raw, MARKS, step=step, field="messages", read=items.read_chat)
        return False
    whole = conversation.split(raw, "messages", items.read_chat, MARKS.all)
    cut = split(raw, MARKS, step=step, field="messages", read=items.read_chat)
    for found in (whole.top, cut.top):
        assert {name: bytes(value) for name, value in found.items()} == {
            name: bytes(value) for name, value in plain.items()
        }
        assert list(found) == list(plain)
    if whole.items is not None:
        assert raw[slice(*whole.place)] == bytes(plain["messages"])
        assert whole.items == items.read_chat(bytes(plain["messages"]))
    place = cut.place("messages")
    if cut.items("messages") is not None:
        assert place is not None
        assert cut.items("messages") == items.read_chat(cut.short("messages"))
    assert place is None or raw[slice(*place)] == bytes(plain["messages"])
    return whole.items is not None


@given(others, conversations, others, layouts)
def test_fields_and_items_are_those_of_two_passes(
    before: dict[str, Any], messages: Any, after: dict[str, Any], layout: dict[str, Any]
) -> None:
    """Whatever stands around the conversation and in it, in whatever layout; its bytes stay as they are."""
    same(body_of(before, messages, after, layout))


@given(others, conversations, others, layouts, st.data())
def test_broken_bodies_are_refused_as_ever(
    before: dict[str, Any], messages: Any, after: dict[str, Any], layout: dict[str, Any], data: st.DataObject
) -> None:
    """Some bytes more, less or others: a Fault if and only if the body is no JSON object, else the same fields."""
    raw = bytearray(body_of(before, messages, after, layout))
    at = data.draw(st.integers(0, len(raw)))
    pieces = [
        b"",
        b'"',
        b"\\",
        b"{",
        b"]",
        b",",
        b"}]",
        b'}],"x":',
        b'"messages":[',
        b'}],"messages":[{"role":"a"}',
        b"\xff",
    ]
    raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.sampled_from(pieces))
    same(bytes(raw))


@given(st.lists(conversations, min_size=2, max_size=3), layouts, st.booleans())
def test_last_of_several_conversations_counts(lists: list[Any], layout: dict[str, Any], escaped: bool) -> None:
    """As everywhere; a name may be written with escapes."""
    fields = [b'"messages":' + json.dumps(one, **layout).encode() for one in lists]
    if escaped:
        fields[-1] = fields[-1].replace(b'"m', b'"\\u006d', 1)
    same(b'{"model":"a",' + b",".join(fields) + b',"n":1}')


@given(st.lists(messages, max_size=5), st.sampled_from(["image_url", "url", "source", "output", "content"]), values)
def test_media_are_seen_whichever_way_messages_are_read(messages: list[Any], name: str, value: Any) -> None:
    """With tool calls as raw JSON or read: the same messages are looked at."""
    raw = json.dumps([*messages, {"role": "user", name: value}]).encode()
    chat, plain = items.read_chat(raw), items.read(raw)
    assert chat is not None
    assert plain is not None
    assert items.with_media(chat) == items.with_media(plain)


CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"anyOf": [{"role": {"type": "string"}}]}}}]
USUAL = {
    "openai": {"model": "m", "messages": CHAT, "tools": TOOLS, "stream": True},
    "last": {"model": "m", "tools": TOOLS, "messages": CHAT},
    "alone": {"messages": CHAT[:1]},
    "langchain": {"messages": [{"content": "Hi", "role": "user"}], "model": "m", "tools": TOOLS},
    "anthropic": {"model": "m", "messages": CHAT[1:], "system": [{"type": "text", "text": "x"}], "tools": TOOLS},
    "codex": {"model": "m", "messages": [{"type": "message", "role": "user", "content": []}], "tools": TOOLS},
    "codex, later": {"messages": [{"type": "function_call", "arguments": "{}"}], "tools": TOOLS * 9, "store": False},
}


@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"separators": (",", ":")}])
@pytest.mark.parametrize("body", USUAL.values(), ids=list(USUAL))
def test_bodies_of_usual_clients_are_read_in_one_pass(body: dict[str, Any], layout: dict[str, Any]) -> None:
    """Else they would be read once more than before."""
    assert same(json.dumps(body, **layout).encode())


@pytest.mark.parametrize(
    "body",
    [
        {"x": ["y" * 140_000], "messages": CHAT},
        {"messages": CHAT, "x": ["y" * 140_000]},
        {"messages": [{"role": "user", "x": ["y\n" * 70_000]}]},
        {"messages": [{"role": "user", **{f"x{n}": [{"a": 1}] for n in range(9)}}], "model": "m"},
        {"messages": ["a", {"role": "user"}]},
        {"messages": [{"role": "user"}, "a"]},
        {"messages": [{"n" * 40: 1}]},
        {"x": {"messages": CHAT}, "messages": CHAT},
    ],
)
def test_search_for_the_conversation_is_bounded(body: dict[str, Any]) -> None:
    """Where it cannot be found near the ends of the body, with few guesses, the body is read as any other."""
    assert not same(json.dumps(body).encode(), step=8192)


def test_changed_conversation_is_not_the_one_that_was_read() -> None:
    """A rule that puts something else in its place has that looked at."""
    abridged = split(json.dumps(USUAL["openai"]).encode(), MARKS, field="messages", read=items.read_chat)
    assert abridged.items("messages") is not None
    assert abridged.items("tools") is None
    copy = abridged.copy()
    abridged.top["messages"] = b"[]"
    assert abridged.items("messages") is None
    assert abridged.place("messages") is None
    assert abridged.short("messages") == b"[]"
    assert copy.items("messages") is not None
