"""Engines as they answer on raw sockets: every legal way to end an answer, and what is none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lmtower.gateway import Upstream
from tests.fakes.engine import FakeEngine
from tests.gateway.support import Running, running, until

CHOICE = {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
WHOLE = json.dumps({"id": "x", "object": "chat.completion", "model": "m", "choices": [CHOICE]}).encode()
CHUNK = {
    "id": "x",
    "object": "chat.completion.chunk",
    "model": "m",
    "choices": [{"index": 0, "delta": {"content": "ok"}}],
}
STREAM = b"data: " + json.dumps(CHUNK).encode() + b"\n\ndata: [DONE]\n\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n%x\r\n"


class Raw:
    """Answers health checks, and every POST with these pieces; then it closes."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self.asked = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await read_head(reader):
            if head.startswith(b"GET"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                continue
            self.asked += 1
            for piece in self.pieces:
                writer.write(piece)
                await writer.drain()
            break
        writer.close()


async def read_head(reader: asyncio.StreamReader) -> bytes:
    """A request's head, its body skipped; nothing at the end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length or b"0"))
    return head


@asynccontextmanager
async def answering(tmp_path: Path, *pieces: bytes) -> AsyncIterator[tuple[Running, Raw]]:
    """A gateway before an engine that answers so, with a connection kept from its health check."""
    raw = Raw(pieces)
    server = await asyncio.start_server(raw, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    there = Upstream(engine="big", replica="big", url=f"http://127.0.0.1:{port}", model="m")
    with FakeEngine("m") as unused:
        async with running(tmp_path, unused, upstreams=[there]) as tower:
            await until(lambda: tower.gateway.snapshot.engines["big"].replicas[0].healthy)
            yield tower, raw
    server.close()


@pytest.mark.parametrize(
    "pieces",
    [
        [HEAD + b"content-length: %d\r\n\r\n" % len(WHOLE) + WHOLE],
        [HEAD + CHUNKED % len(WHOLE), WHOLE, b"\r\n0\r\n\r\n"],
        [HEAD + b"\r\n", WHOLE],
        [HEAD.replace(b"1.1", b"1.0") + b"connection: close\r\n\r\n" + WHOLE],
        [b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n", HEAD + b"\r\n" + WHOLE],
    ],
)
async def test_answer_may_end_with_its_length_its_last_chunk_or_the_connection(
    tmp_path: Path, pieces: list[bytes]
) -> None:
    """All three of RFC 9112 6.3, also from an engine that speaks HTTP/1.0."""
    async with answering(tmp_path, *pieces) as (tower, _):
        answer = await tower.chat()
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "ok"


@pytest.mark.parametrize(
    "pieces",
    [
        [EVENTS + CHUNKED % len(STREAM), STREAM, b"\r\n0\r\n\r\n"],
        [EVENTS + CHUNKED % len(STREAM), STREAM, b"\r\n"],
        [EVENTS + CHUNKED % len(STREAM), STREAM],
        [EVENTS + b"\r\n", STREAM],
    ],
)
async def test_stream_that_said_done_is_complete_however_the_connection_ends(
    tmp_path: Path, pieces: list[bytes]
) -> None:
    """After [DONE] nothing is missing: no error is put behind it, and it is recorded as it was."""
    async with answering(tmp_path, *pieces) as (tower, _):
        answer = await tower.chat(stream=True)
        [record] = await tower.records(1)
    assert answer.text.endswith("data: [DONE]\n\n")
    assert "error" not in answer.text
    assert record.outcome == "ok"


async def test_stream_without_done_is_not_complete(tmp_path: Path) -> None:
    """The end of the connection is no end of the answer: the client gets an error and a cut connection."""
    async with answering(tmp_path, EVENTS + b"\r\n" + STREAM[:-14]) as (tower, _):
        assert "before the answer was complete" in await tower.cut_stream()


@pytest.mark.parametrize("piece", [b"HTTP/1.1 200 OK\r\nconte", b"HTTP/1.1 100 Continue\r\n\r\n", HEAD + b"\r\n{"])
async def test_engine_that_died_after_its_first_byte_is_not_asked_again(tmp_path: Path, piece: bytes) -> None:
    """Not even on a kept connection: it saw the request."""
    async with answering(tmp_path, piece) as (tower, raw):
        answer = await tower.chat()
    assert answer.status_code == 502
    assert raw.asked == 1


@pytest.mark.parametrize("status", [b"302 Found", b"204 No Content", b"201 Created"])
async def test_strange_status_is_not_told_as_the_clients_mistake(tmp_path: Path, status: bytes) -> None:
    """A redirect means that the tower file has the wrong address: 502, and waiting does not help."""
    async with answering(tmp_path, b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n") as (tower, _):
        answer = await tower.chat()
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_refused")
    assert answer.headers["x-should-retry"] == "false"
