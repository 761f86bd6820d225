"""Compressed request bodies: decoded within the body limit, refused in the protocol's words otherwise."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.fakes.engine import FakeEngine
from tests.gateway.support import running

BODY: dict[str, Any] = {"model": "plan", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
RAW = json.dumps(BODY).encode()


def _bare_deflate(data: bytes) -> bytes:
    made = zlib.compressobj(wbits=-15)
    return made.compress(data) + made.flush()


def _streamed_zstd(data: bytes) -> bytes:
    """Without the content's size in its head, as streaming encoders write it."""
    made = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return made.compress(data) + made.flush()


CODINGS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "two gzip members": ("GZIP", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
    "deflate": ("deflate", zlib.compress),
    "deflate without its wrapper": ("deflate", _bare_deflate),
    "zstd": ("zstd", zstandard.compress),
    "zstd of a stream": ("zstd", _streamed_zstd),
    "identity": ("identity", bytes),
}


@pytest.mark.parametrize("case", CODINGS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_compressed_body_reaches_the_engine_as_json(tmp_path: Path, path: str, case: str) -> None:
    """On the first request of a connection and on the next with the same head."""
    coding, compress = CODINGS[case]
    with FakeEngine() as engine:
        async with running(tmp_path, engine) as tower:
            headers = {"content-encoding": coding, "content-type": "application/json"}
            answers = [await tower.client.post(path, content=compress(RAW), headers=headers) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
        seen = [request for request in engine.requests if request.method == "POST"]
    assert [request.json["messages"][-1]["content"] for request in seen] == ["hello", "hello"]
    assert all("content-encoding" not in request.headers for request in seen)


BROKEN: dict[str, tuple[str, bytes, int, str]] = {
    "not gzip": ("gzip", RAW, 400, "invalid_encoding"),
    "cut gzip": ("gzip", gzip.compress(RAW)[:-9], 400, "invalid_encoding"),
    "not zstd": ("zstd", RAW, 400, "invalid_encoding"),
    "not deflate": ("deflate", RAW, 400, "invalid_encoding"),
    "unknown": ("br", RAW, 415, "unsupported_encoding"),
    "two": ("gzip, zstd", RAW, 415, "unsupported_encoding"),
    "gzip bomb": ("gzip", gzip.compress(bytes(30_000_000)), 413, "request_too_large"),
    "zstd bomb": ("zstd", zstandard.compress(bytes(30_000_000)), 413, "request_too_large"),
    "deflate bomb": ("deflate", zlib.compress(bytes(30_000_000)), 413, "request_too_large"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_what_cannot_be_decoded_is_refused_in_the_protocols_envelope(
    tmp_path: Path, path: str, case: str
) -> None:
    """Never a 5xx, never as 'not valid JSON', and never more memory than the body limit allows."""
    coding, content, status, code = BROKEN[case]
    with FakeEngine() as engine:
        async with running(tmp_path, engine, gateway={"max_body": 100_000}) as tower:
            answer = await tower.client.post(path, content=content, headers={"content-encoding": coding})
        assert [request for request in engine.requests if request.method == "POST"] == []
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    if path == "/v1/messages":
        assert (answer.json()["type"], answer.json()["request_id"]) == ("error", answer.headers["x-request-id"])
        assert error["type"] == ("request_too_large" if status == 413 else "invalid_request_error")
    else:
        assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert ("accept-encoding" in answer.headers) == (status == 415)


async def test_compressed_body_of_an_unknown_caller_is_not_decoded(tmp_path: Path) -> None:
    """The key comes first: nobody without one makes the tower work."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine) as tower:
            headers = {"content-encoding": "gzip", "authorization": "Bearer nobody"}
            answer = await tower.client.post("/v1/chat/completions", content=b"no gzip at all", headers=headers)
    assert answer.status_code == 401
