"""Replayed calls are mended, and media found, whichever way the messages were read: in one pass or as raw items."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtower.guard import clean_chat, clean_messages, clean_responses
from lmtower.wire import items

texts = st.text(st.characters(codec="utf-8"), max_size=12)
odd = (
    st.none()
    | st.booleans()
    | st.integers()
    | texts
    | st.lists(texts, max_size=2)
    | st.dictionaries(texts, texts, max_size=2)
)
arguments = odd | st.sampled_from(["{}", '{"a": 1}', '{"a": 1', "{'a': 1}", "[]", '{"a": "é\\n"}', ' {"b": []} '])
media = st.sampled_from(
    [{"image_url": {"url": "http://x/y"}}, {"source": {"type": "url", "url": "http://x"}}, {"url": None}]
)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with any of these fields."""
    return st.fixed_dictionaries({}, optional=fields)


strings = st.sampled_from(["", "{}", '{"a": 1', "[1]", "a"])
"""Of the right type, so that messages are read in one pass."""
nearly_calls = st.fixed_dictionaries(
    {
        "id": strings,
        "function": st.fixed_dictionaries({"name": strings, "arguments": strings}),
    }
)
nearly_blocks = some(type=st.sampled_from(["tool_use", "text"]), input=st.sampled_from([None, {}]), content=texts)
nearly_inputs = some(type=st.sampled_from(["function_call", "message"]), arguments=strings | st.none(), content=texts)
calls = some(id=odd, type=st.just("function"), function=some(name=odd, arguments=arguments) | odd)
parts = some(type=st.sampled_from(["text", "image_url"]) | odd, text=texts) | media | odd
blocks = (
    some(
        type=st.sampled_from(["tool_use", "text", "tool_result"]) | odd,
        input=odd,
        content=st.lists(parts, max_size=2) | texts,
    )
    | media
)
NEARLY = {
    "chat": st.fixed_dictionaries({"tool_calls": st.lists(nearly_calls, max_size=2)}),
    "messages": st.fixed_dictionaries({"content": st.lists(nearly_blocks, max_size=2)}),
    "responses": nearly_inputs,
}
KINDS = {
    "chat": (
        items.read_chat,
        clean_chat,
        some(role=texts, content=st.lists(parts, max_size=2) | odd, tool_calls=st.lists(calls, max_size=2) | odd)
        | media,
    ),
    "messages": (items.read_messages, clean_messages, some(role=texts, content=st.lists(blocks, max_size=3) | odd)),
    "responses": (
        items.read_responses,
        clean_responses,
        some(
            type=st.sampled_from(["message", "function_call"]) | odd,
            arguments=arguments,
            output=st.lists(parts, max_size=2) | odd,
            content=st.lists(parts, max_size=2) | odd,
        )
        | media,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_reading_in_one_pass_changes_no_verdict(kind: str, data: st.DataObject) -> None:
    """Any messages, sound or broken, with escapes in their names or none."""
    read, clean, messages = KINDS[kind]
    raw = json.dumps(
        data.draw(st.lists(NEARLY[kind], max_size=3) | st.lists(messages, max_size=4)),
        ensure_ascii=data.draw(st.booleans()),
    ).encode()
    if data.draw(st.booleans()):
        raw = (
            raw.replace(b'"tool_', b'"\\u0074ool_')
            .replace(b'"function', b'"\\u0066unction')
            .replace(b'"url', b'"\\u0075rl')
        )
    quick, whole = read(raw), items.read(raw)
    assert quick is not None
    assert whole is not None
    assert items.with_media(quick) == items.with_media(whole)
    mended = clean(raw, whole)
    assert json.loads(clean(raw, quick)) == json.loads(mended)
    assert (clean(raw, quick) is raw) or json.loads(mended) != json.loads(raw)
    assert clean(mended) is mended


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("chat", b'[{"tool_calls":[{"id":"a","function":{"name":"f","arguments":"{}"}}],"content":null}]'),
        (
            "messages",
            b'[{"content":[{"type":"tool_use","input":{}},{"type":"tool_result","content":"x"}]},{"content":"a"}]',
        ),
        ("responses", b'[{"type":"function_call","arguments":"{}"},{"type":"message","content":[{"text":"a"}]}]'),
    ],
)
def test_usual_histories_are_read_in_one_pass(kind: str, raw: bytes) -> None:
    """Sound calls need no second look at the whole message."""
    read, clean, _ = KINDS[kind]
    found = read(raw)
    assert found is not None
    assert not any(isinstance(item, items.Item) for item in found)
    assert clean(raw, found) is raw
    assert read(b"[1]") is None
    assert read(b'[{"content":"') is None
