"""Splitting and joining bodies: the same meaning before and after, whatever the body."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtower.wire import scan, top
from lmtower.wire.chat import merge_system
from lmtower.wire.faults import Fault

texts = st.text(st.characters(codec="utf-8"), max_size=40)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
bodies = st.dictionaries(texts, values, max_size=8)
layouts = st.sampled_from([{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}])


def joined(pieces: list[Any]) -> bytes:
    return b"".join(bytes(memoryview(piece)) for piece in pieces)


@given(bodies, layouts)
def test_join_of_split_means_the_same(body: dict[str, Any], layout: dict[str, Any]) -> None:
    """Any JSON object survives: unknown fields, unicode, escapes, numbers, order."""
    raw = json.dumps(body, **layout).encode()
    for pieces in (top.join(top.split(raw)), top.join_long(top.split(raw))):
        assert json.loads(joined(pieces)) == body
        assert list(json.loads(joined(pieces))) == list(body)
        assert top.size(pieces) == len(joined(pieces))


@given(bodies, texts, values)
def test_setting_a_field_changes_nothing_else(body: dict[str, Any], name: str, value: Any) -> None:
    """A rule's field is set, every other field keeps its bytes."""
    fields = top.split(json.dumps(body).encode())
    fields[name] = top.encoded(value)
    assert json.loads(joined(top.join(fields))) == {**body, name: value}
    assert json.loads(joined(top.join_long(fields))) == {**body, name: value}


def test_last_of_duplicate_fields_wins_as_in_the_engines() -> None:
    """What is checked is what is sent: one value, the last."""
    fields = top.split(b'{"model":"a","n":1,"model":"b"}')
    assert top.text(fields, "model") == "b"
    assert joined(top.join(fields)).count(b'"model"') == 1


@pytest.mark.parametrize(
    "body", [b"", b"  ", b"[]", b"1", b"{", b'{"a":}', b'{"a":1}x', b"\xff\xfe", b'{"a":"\xff"}', b"nul"]
)
def test_broken_bodies_are_faults(body: bytes) -> None:
    """Everything that is not one JSON object in UTF-8 is a 400 for the client."""
    with pytest.raises(Fault) as caught:
        top.value(top.split(body), "a")
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


def test_typed_fields() -> None:
    """Strings and flags are what they say or a 400; null counts as absent."""
    fields = top.split(b'{"model":"m","stream":true,"none":null,"number":1}')
    assert (top.text(fields, "model"), top.text(fields, "none"), top.text(fields, "gone")) == ("m", None, None)
    assert (top.flag(fields, "stream"), top.flag(fields, "none"), top.flag(fields, "gone")) == (True, False, False)
    assert (top.given(fields, "none"), top.given(fields, "number")) == (False, True)
    for read in (top.text, top.flag):
        with pytest.raises(Fault, match="must be"):
            read(fields, "number")


contents = texts | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), max_size=3)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant"]), "content": contents},
    optional={"name": texts, "extra": values},
)
reordered = message.flatmap(lambda found: st.permutations(list(found.items())).map(dict))


@given(st.lists(reordered, min_size=1, max_size=4), texts.filter(bool), layouts)
def test_system_prompt_goes_first_and_nothing_else_changes(
    messages: list[dict[str, Any]], prompt: str, layout: dict[str, Any]
) -> None:
    """The prompt is at the start of the first system message; other messages keep their meaning; no second system."""
    raw = json.dumps(messages, **layout).encode()
    merged = json.loads(joined(merge_system(memoryview(raw), json.dumps(prompt).encode()[1:-1])))
    systems = [n for n, m in enumerate(messages) if m["role"] in ("system", "developer")]
    if not systems:
        assert merged == [{"role": "system", "content": prompt}, *messages]
        return
    place = 0 if 0 in systems else systems[0]
    own = messages[place]["content"]
    found = merged[place]
    if isinstance(own, str):
        assert found["content"] == (f"{prompt}\n\n{own}" if own else prompt)
    else:
        assert found["content"] == [{"type": "text", "text": prompt}, *own]
    assert found["role"] == "system"
    assert {k: v for k, v in found.items() if k not in ("role", "content")} == {
        k: v for k, v in messages[place].items() if k not in ("role", "content")
    }
    assert [m for n, m in enumerate(merged) if n != place] == [m for n, m in enumerate(messages) if n != place]


@pytest.mark.parametrize(
    "messages", [b"[]", b"{}", b'"x"', b"[1]", b'[{"role":"system"}]', b'[{"role":"system","content":1}]']
)
def test_strange_messages_are_faults(messages: bytes) -> None:
    """No list, no message, no text: a 400 that names the field."""
    with pytest.raises(Fault) as caught:
        merge_system(memoryview(messages), b"prompt")
    assert (caught.value.status, caught.value.param) == (400, "messages")


@given(st.lists(values, max_size=5), layouts)
def test_items_finds_every_element(elements: list[Any], layout: dict[str, Any]) -> None:
    """The places that the scanner finds hold exactly the elements."""
    raw = json.dumps(elements, **layout).encode()
    assert [json.loads(raw[a:b]) for a, b in scan.items(raw)] == elements
