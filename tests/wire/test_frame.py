"""The frame of plain chunks is a short cut: it must never let through what a proper look would change."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtower.wire.chat import ChatReply
from lmtower.wire.frame import Frame

HEAD = '{"id":"c1","object":"chat.completion.chunk","created":1,"model":"served","choices":['


def chunk(text: str, tail: str = ',"logprobs":null,"finish_reason":null') -> bytes:
    """A plain chunk as vLLM writes it."""
    return f'data: {HEAD}{{"index":0,"delta":{{"content":{json.dumps(text)}}}{tail}}}]}}\n\n'.encode()


def feed(*pieces: bytes) -> tuple[list[bytes], ChatReply]:
    """What one reply makes of these reads, one after the other."""
    reply = ChatReply("served", "asked", "r1", wants_usage=True)
    return [reply.feed(piece) for piece in pieces], reply


@pytest.mark.parametrize(
    "texts",
    [
        ["a", "b", "c"],
        ['say "hi"', "x", '"', "\\\\", "y\\"],
        ["", " ", "\n\n", "ü", '","usage":{"prompt_tokens":1}'],
        ['"model":"served"', "z"],
    ],
)
def test_framed_text_arrives_as_it_was_sent(texts: list[str]) -> None:
    """Whatever the text, chunk for chunk the text is the same and the model is the asked one."""
    out, reply = feed(*[chunk(text) for text in texts])
    parsed = [json.loads(data.removeprefix(b"data: ")) for data in out]
    assert [part["choices"][0]["delta"]["content"] for part in parsed] == texts
    assert {part["model"] for part in parsed} == {"asked"}
    assert reply.events == len(texts)


def test_several_events_in_one_read_are_all_renamed() -> None:
    """A read with more than one framed event keeps them all."""
    out, reply = feed(chunk("a"), chunk("b") + chunk("c"), chunk("d"))
    assert b"".join(out) == b"".join(chunk(text) for text in "abcd").replace(b'"served"', b'"asked"')
    assert reply.events == 4


@given(st.lists(st.text(max_size=12) | st.just('","model":"served"'), min_size=1, max_size=6), st.integers(1, 6))
def test_reads_of_any_size_give_the_same_bytes(texts: list[str], many: int) -> None:
    """However many events a read holds, whatever they say: the bytes are those of single reads."""
    events = [chunk(text) for text in texts]
    runs = [b"".join(events[at : at + many]) for at in range(0, len(events), many)]
    single, one = feed(chunk("first"), *events)
    joined, other = feed(chunk("first"), *runs)
    assert b"".join(joined) == b"".join(single)
    assert other.events == one.events


@pytest.mark.parametrize("extra", [',"reasoning":"hm"', ',"tool_calls":[{"index":0}]'])
def test_what_needs_care_never_fits_the_frame(extra: str) -> None:
    """A chunk with another field beside the text is still looked at."""
    odd = chunk("b").replace(b'"content":"b"', f'"content":"b"{extra}'.encode())
    out, _ = feed(chunk("a"), odd)
    delta = json.loads(out[1].removeprefix(b"data: "))["choices"][0]["delta"]
    assert delta.get("reasoning_content") == ("hm" if "reasoning" in extra else None)


def test_usage_and_the_end_are_seen_behind_framed_chunks() -> None:
    """The last chunks differ from the frame and are read as ever."""
    usage = f'data: {HEAD[:-1]}[],"usage":{{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}}}\n\n'.encode()
    out, reply = feed(chunk("a"), chunk("b"), usage + b"data: [DONE]\n\n")
    assert reply.complete
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (3, 2)
    assert out[2].endswith(b"data: [DONE]\n\n")


def test_frame_is_not_learnt_from_an_event_with_an_escape_before_its_quote() -> None:
    """A text that ends in a backslash leaves no frame behind."""
    frame = Frame(b'"text":"')
    frame.learn(b'data: {"text":"a\\\\"}\n\n', bytes)
    assert frame.renamed(b'data: {"text":"b"}\n\n') == (0, b"")
