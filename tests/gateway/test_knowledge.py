"""The store service as the gateway sees it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from lmtower.config.folder import INTERNAL_KEY
from tests.fakes.engine import FakeEngine
from tests.gateway.support import running


async def too_busy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A store service whose embedding persona is away."""
    await reader.readuntil(b"\r\n\r\n")
    body = json.dumps({"error": {"message": "The persona is away.", "code": "embedding_unavailable"}}).encode()
    head = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 7\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    writer.write(head % len(body) + body)
    writer.close()


async def test_search_that_cannot_be_made_now_says_when(tmp_path: Path) -> None:
    """The service's Retry-After reaches whoever asked a model that searches; the engine hears nothing of it."""
    (tmp_path / INTERNAL_KEY).write_text("secret")
    service = await asyncio.start_server(too_busy, "127.0.0.1", 0)
    port = service.sockets[0].getsockname()[1]
    with FakeEngine() as engine:
        async with running(tmp_path, engine, stores={"listen": f"127.0.0.1:{port}"}) as tower:
            answer = await tower.chat(tools=[{"type": "file_search", "vector_store_ids": ["vs_1"]}])
        assert not engine.to("/chat/completions")
    service.close()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "embedding_unavailable")
    assert answer.headers["retry-after"] == "7"
