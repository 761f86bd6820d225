"""The short way of a read that is one chunk: never other bytes than on the long way through the parser."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtower.gateway.chunks import is_between, opening
from lmtower.gateway.flow import Flow
from lmtower.gateway.pool import Pool
from lmtower.gateway.relay import Relay
from lmtower.gateway.upstream import Call, Connection, UpstreamLost
from lmtower.wire.chat import ChatReply

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: Chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


class Transport:
    """Takes what is written, and notes whether it was cut."""

    def __init__(self) -> None:
        self.cut = False

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None

    def abort(self) -> None:
        self.cut = True


def calling() -> tuple[Connection, Call]:
    """A connection to an engine on which a request was just sent."""
    connection = Connection(Pool("http://engine", None))
    connection.connection_made(cast("Any", Transport()))
    return connection, connection.send([b"POST / HTTP/1.1\r\n\r\n"], 0, 0.0)


def chunk(body: bytes, form: str = "%x\r\n") -> bytes:
    return form.encode() % len(body) + body + b"\r\n"


def event(text: str, more: str = "") -> bytes:
    head = (
        'data: {"id":"c1","object":"chat.completion.chunk","model":"served","choices":[{"index":0,"delta":{"content":'
    )
    return f"{head}{json.dumps(text)}}}{more}}}]}}\n\n".encode()


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[at:to] for at, to in pairwise(places)]


bodies = st.one_of(
    st.text(max_size=300).map(event),
    st.binary(max_size=20),
    st.sampled_from(
        [b"\n\n", b": note\n\n", b"data: half", b" an event\n\n", b"\r\n", b"5\r\n", b"\n\n\r\n", b"x\n\n\r\n\n\n"]
    ),
)
forms = st.sampled_from(["%x\r\n"] * 5 + ["%X\r\n", "00%x\r\n", "%x;note=1\r\n"])
chunks = st.lists(st.tuples(bodies.filter(bool), forms), max_size=8)


@pytest.mark.parametrize("length", [*range(6, 700), *range(4090, 4130), 65_550, 65_551, 200_000])
def test_read_of_any_length_is_one_chunk_in_one_way(length: int) -> None:
    """The size that a read begins with says how long the read is."""
    size = opening(length)
    assert len(size) + int(size, 16) + 2 == length
    assert int(size, 16) > 0


@pytest.mark.parametrize("read", [b"", b"0", b"0\r\n", b"0\r\n\r\n", b"1\r\n\r\n", b"1\r\na\r"])
def test_read_that_is_too_short_is_no_chunk(read: bytes) -> None:
    """The last chunk above all is the parser's."""
    assert not read.startswith(opening(len(read)))


@given(chunks, st.data())
def test_body_is_the_same_however_it_is_chunked_and_read(made: list[tuple[bytes, str]], data: st.DataObject) -> None:
    """Reads that end with chunks and reads that do not give the same body, and the answer ends when it ends."""
    connection, call = calling()
    got: list[bytes] = []

    def take(read: bytes, start: int) -> bool:
        if taking := data.draw(st.booleans()):
            got.append(read[start:-2])
        return taking

    call.attach(got.append, take)
    parts = [HEAD, *(chunk(body, form) for body, form in made), LAST]
    if data.draw(st.booleans()):
        parts = pieces_of(b"".join(parts), data.draw(st.lists(st.integers(1, 600), max_size=12)))
    for part in parts:
        assert not call.complete
        connection.data_received(part)
    assert b"".join(got) == b"".join(body for body, _ in made)
    assert call.complete
    assert connection.call is None


@given(chunks, st.integers(0, 4000))
def test_stream_that_is_cut_is_never_complete(made: list[tuple[bytes, str]], at: int) -> None:
    """What came before the cut arrives, and the call ends with an error."""
    connection, call = calling()
    got: list[bytes] = []
    call.attach(got.append)
    whole = b"".join(body for body, _ in made)
    left = at
    for part in (HEAD, *(chunk(body, form) for body, form in made), LAST[:-1]):
        connection.data_received(part[:left])
        left = max(0, left - len(part))
    connection.connection_lost(None)
    assert whole.startswith(b"".join(got))
    assert isinstance(call.error, UpstreamLost)
    assert not call.complete


def test_connection_carries_another_answer_after_a_stream_of_single_chunks() -> None:
    """What the parser did not see leaves nothing behind."""
    connection, call = calling()
    taken: list[bytes] = []
    call.attach(lambda _: None, lambda read, start: not taken.append(read[start:-2]))
    for part in (HEAD + chunk(event("a")), chunk(event("b")), chunk(event("c")), LAST):
        connection.data_received(part)
    assert (call.complete, taken) == (True, [event("b"), event("c")])
    again = connection.send([b"GET / HTTP/1.1\r\n\r\n"], 0, 0.0)
    connection.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n")
    connection.data_received(b"2\r\n\r\n\n\n\r\n..")
    assert (again.complete, again.gathered()) == (True, b"2\r\n\r\n\n\n\r\n..")


def test_garbage_between_chunks_ends_the_call() -> None:
    """The parser gets what is no chunk, and says so."""
    connection, call = calling()
    call.attach(lambda _: None)
    connection.data_received(HEAD + chunk(event("a")))
    connection.data_received(chunk(event("b")))
    connection.data_received(b"no size\n\n\r\n")
    assert "not HTTP" in str(call.error)
    assert cast("Any", connection.transport).cut


@pytest.mark.parametrize(
    ("read", "last"),
    [
        (b"9\r\ndata: x\n\n", b"data: x\n\n"),
        (b"b\r\ndata: x\n\n\r\n", b"data: x\n\n\r\n"),
        (b"x\n\n\r\n5\r\n", b"x\n\n"),
    ],
)
def test_inside_a_chunk_is_not_between_chunks(read: bytes, last: bytes) -> None:
    """A piece at the very end, and a size behind the end, are told from the end of a chunk."""
    assert not is_between(read, last)


class Client:
    """An exchange that keeps what it is sent."""

    def __init__(self) -> None:
        self.sent = b""
        self.started = True

    def send(self, data: bytes) -> None:
        self.sent += data


def relayed(reads: list[bytes]) -> tuple[bytes, ChatReply, int]:
    """What a client of a chat gets, the reply that it came through, and how many reads took the short way."""
    connection, call = calling()
    client, reply = Client(), ChatReply("served", "asked", "r1", wants_usage=True)
    relay = Relay(cast("Flow", SimpleNamespace(exchange=client, first_at=0.0, done=lambda: None)), reply, lambda: 0.0)
    relay.attach(call)
    short = 0
    take = call.take

    def counted(read: bytes, start: int) -> bool:
        nonlocal short
        assert take is not None
        taken = take(read, start)
        short += taken
        return taken

    call.take = counted
    for read in reads:
        connection.data_received(read)
    return client.sent, reply, short


events = st.one_of(
    st.text(max_size=20).map(event),
    st.sampled_from(["", "a", 'say "hi"', "\\", "\n\n", '"model":"served"', '","usage":{}']).map(event),
    st.sampled_from([
        event("x", ',"finish_reason":"stop"'),
        event("x").replace(b'"content"', b'"reasoning":"hm","content"'),
        b": keepalive\n\n",
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n',
    ]),
)  # fmt: skip


def events_of(sent: bytes) -> list[Any]:
    """Decoded, because events that share a read with one that is mended are written anew."""
    datas = [one.removeprefix(b"data: ") for one in sent.split(b"\n\n") if one]
    return [json.loads(data) if data.startswith(b"{") else data for data in datas]


@given(st.lists(events, max_size=12), st.lists(st.integers(1, 3000), max_size=6))
def test_client_gets_the_same_events_however_they_were_read(made: list[bytes], cuts: list[int]) -> None:
    """A chunk an event, or events cut anywhere into chunks, or reads cut anywhere: the same JSON, count and usage."""
    made = [*made, b"data: [DONE]\n\n"]
    parts = [HEAD, *map(chunk, made), LAST]
    pieces = [HEAD, *map(chunk, pieces_of(b"".join(made), cuts)), LAST]
    whole, one, _ = relayed([b"".join(parts)])
    for reads in (parts, pieces, pieces_of(b"".join(parts), cuts)):
        sent, other, _ = relayed(reads)
        assert events_of(sent) == events_of(whole)
        assert (other.events, other.usage, other.complete) == (one.events, one.usage, True)


def test_plain_chunks_take_the_short_way_and_others_do_not() -> None:
    """Once a plain chunk was seen, its like are told by their frame alone."""
    reads = [HEAD + chunk(event("a")), *(chunk(event(text)) for text in ("b", 'say "c"', "")), chunk(event("d") * 2)]
    sent, reply, short = relayed([*reads, chunk(b": note\n\n"), chunk(event("e", ',"usage":{}'))])
    assert short == 2
    assert reply.events == 7
    assert b'"served"' not in sent


def test_event_in_the_middle_of_another_does_not_take_the_short_way() -> None:
    """A chunk that ends inside an event makes the next one a part of it, whatever that looks like."""
    opened = HEAD + chunk(event("a"))
    assert relayed([opened, chunk(event("b"))])[2] == 1
    assert relayed([opened, chunk(b": half a comment "), chunk(event("b"))])[2] == 0
