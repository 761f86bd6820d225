"""The control plane's small HTTP client: replies whole, chunked, broken, absent."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from lmtower.nodes.http import healthy, request

REPLY = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
async def server() -> AsyncIterator[tuple[str, list[bytes], list[bytes]]]:
    """A server that answers raw bytes; (url, what it answers, what it was asked)."""
    answers: list[bytes] = []
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answers[0])
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as made:
        yield f"http://127.0.0.1:{made.sockets[0].getsockname()[1]}", answers, asked


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (REPLY + b"Content-Length: 2\r\n\r\nok", b"ok"),
        (REPLY + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n3;x=1\r\nyes\r\n0\r\n\r\n", b"okyes"),
        (REPLY + b"\r\n", b""),
    ],
)
async def test_body_is_read_whole(server: tuple[str, list[bytes], list[bytes]], reply: bytes, body: bytes) -> None:
    """With a length, in chunks, or to the end of the connection."""
    url, answers, _ = server
    answers.append(reply)
    answer = await request(url, "/x")
    assert answer is not None
    assert (answer.status, answer.body) == (200, body)


async def test_post_carries_json_and_key(server: tuple[str, list[bytes], list[bytes]]) -> None:
    """A base path is kept; the key is a Bearer token."""
    url, answers, asked = server
    answers.append(REPLY + b'Content-Length: 8\r\n\r\n{"a": 1}')
    answer = await request(f"{url}/base/", "/v1/x", body={"b": 2}, key="secret")
    assert answer is not None
    assert answer.json() == {"a": 1}
    assert asked[0].startswith(b"POST /base/v1/x HTTP/1.1\r\n")
    assert b"Authorization: Bearer secret\r\n" in asked[0]


@pytest.mark.parametrize("reply", [b"", b"nonsense\r\n\r\n", REPLY + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"])
async def test_broken_reply_is_no_answer(server: tuple[str, list[bytes], list[bytes]], reply: bytes) -> None:
    """An engine that is just dying must not raise in the supervisor."""
    url, answers, _ = server
    answers.append(reply)
    assert await request(url, "/x") is None


async def test_nobody_there_is_not_healthy() -> None:
    """Refused, and silent until the time is up."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not await healthy(f"http://127.0.0.1:{silent.getsockname()[1]}", "/health", timeout_seconds=0.2)
    assert not await healthy("http://127.0.0.1:9", "/health")
