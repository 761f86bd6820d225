"""Abridged bodies: the short text is valid when the body is, and everything comes back in the place of its mark."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lmtower.recipes.load import ImageTokens
from lmtower.wire import images, items, top
from lmtower.wire.abridged import Cut, Marks, long_texts, split, without_long_texts
from lmtower.wire.faults import Fault
from tests.wire.test_top import bodies, joined, layouts, texts, values

STEP = 16
MARKS = Marks(b"m0123456789abcdef")
longs = st.builds(lambda unit, times: unit * times, texts.filter(bool), st.integers(1, 300)).map(
    lambda text: text[:900]
)
long_bodies = st.dictionaries(texts | longs, values | longs | st.lists(longs | values, max_size=4), max_size=5)


@given(long_bodies, layouts)
def test_fields_are_those_of_the_body(body: dict[str, Any], layout: dict[str, Any]) -> None:
    """Any JSON object: each field has the bytes that it has without cuts, in the short text with its marks filled."""
    raw = json.dumps(body, **layout).encode()
    abridged, plain = split(raw, MARKS, step=STEP), top.split(raw)
    assert json.loads(joined(top.join(abridged.top))) == body
    for name, value in plain.items():
        assert bytes(abridged.top[name]) == bytes(value)
        assert abridged.whole(abridged.short(name)) == bytes(value)
        assert abridged.stamped(abridged.short(name))[1] == len(value)


@given(long_bodies, layouts, st.data())
def test_broken_bodies_stay_broken(body: dict[str, Any], layout: dict[str, Any], data: st.DataObject) -> None:
    """A byte more, less or another one: refused if and only if the whole body would be."""
    raw = bytearray(json.dumps(body, **layout).encode())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + data.draw(st.integers(0, 2))] = data.draw(st.sampled_from([b"", b'"', b"\\", b"{", b"]", b",", b"a"]))
    assert refused(bytes(raw), step=STEP) == refused(bytes(raw))


def refused(raw: bytes, step: int = 0) -> bool:
    try:
        if step:
            split(raw, MARKS, step=step)
        else:
            top.split(raw)
    except Fault:
        return True
    return False


@given(st.lists(values, min_size=1, max_size=6), bodies, bodies, st.booleans())
def test_known_elements_need_not_be_read(
    elements: list[Any], before: dict[str, Any], after: dict[str, Any], spaced: bool
) -> None:
    """Whatever comes before and behind them: the list is whole, its short form begins with one element for all."""
    before.pop("input", None), after.pop("input", None)
    parts = [json.dumps(element).encode() for element in elements]
    head = json.dumps(before).encode()[:-1] + (b", " if before else b"") + b'"input":['
    tail = b"]" + b"".join(b"," + json.dumps(name).encode() + b":0" for name in after) + b"}"
    for said in range(1, len(parts) + 1):
        known = head + b",".join(parts[:said])
        more = b"".join((b" , " if spaced else b",") + part for part in parts[said:])
        abridged = split(known + more + tail, MARKS, Cut(len(head), len(known), False), STEP)
        assert abridged.begins("input")
        assert json.loads(bytes(abridged.top["input"])) == elements
        assert json.loads(bytes(abridged.short("input")))[1:] == elements[said:]
        assert json.loads(joined(top.join(abridged.top))) == json.loads(known + more + tail)


def test_text_that_only_looks_long_is_left_alone() -> None:
    """What lies between two texts is grammar, and an escaped quote is no end of a text."""
    for raw in (b'{"a":"x",' + b" " * 999 + b'"b":1}', b'{"a":[' + b"1," * 500 + b'1],"b":2}'):
        assert long_texts(raw, 0, STEP) == []
    quoted = json.dumps({"a": 'say "' + "x" * 900 + '" twice'}).encode()
    assert json.loads(joined(top.join(split(quoted, MARKS, step=STEP).top))) == json.loads(quoted)


def test_a_set_field_is_seen_as_it_was_set() -> None:
    """The short text belongs to the value that was received, not to one that a rule put in its place."""
    abridged = split(json.dumps({"input": "x" * 900}).encode(), MARKS, step=STEP)
    abridged.top["input"] = b'"other"'
    assert abridged.short("input") == b'"other"'
    assert abridged.place("input") is None


def test_names_outside_of_long_texts_are_found() -> None:
    """What is left out holds no names."""
    raw = json.dumps({"a": "system" * 3000, "b": "system", "c": "d" * 20000}).encode()
    kept = without_long_texts(raw)
    assert b'"b": "system"' in kept
    assert len(kept) < 400


@pytest.mark.parametrize("large", [False, True])
def test_cut_pictures_are_measured_scaled_and_put_back(large: bool) -> None:
    """A picture's size is read from the beginning of its data; a scaled one takes the place of its mark."""
    picture = Image.effect_noise((600, 300), 90) if large else Image.new("RGB", (40, 20))
    out = io.BytesIO()
    picture.save(out, "PNG")
    data = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": "n" * 30_000}]
    raw = json.dumps({"messages": [{"role": "user", "content": content}]}).encode()
    abridged = split(raw, MARKS)
    short = abridged.short("messages")
    assert len(short) < 1000
    found = images.find(short, items.read(short), abridged.rest)
    assert found is not None
    assert found.pictures[0].size == len(data)
    assert images.tokens(found, ImageTokens(cell=20)) == (450 if large else 2)
    assert images.shrink(found, 100) == large
    sent = json.loads(abridged.whole(found.join()))
    assert sent[0]["content"][1] == content[1]
    assert (sent[0]["content"][0] == content[0]) != large


def test_long_address_is_checked_as_a_whole() -> None:
    """A URL so long that most of it was cut out is no other URL."""
    address = "https://example.com/" + "a" * 30_000
    raw = json.dumps(
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": address}]}]}
    ).encode()
    abridged = split(raw, MARKS)
    found = images.find(abridged.short("messages"), None, abridged.rest)
    assert found is not None
    assert found.pictures[0].url == address
