"""A small HTTP/1.1 client for engines: is it healthy, warm it up. One request a connection, no dependencies.

The data plane has its own client with a pool; the control plane asks rarely and must not import that one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_MAX_BYTES = 16 * 1024**2


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body of a reply."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The body as JSON; None when it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


async def request(
    url: str, path: str, *, body: Mapping[str, Any] | None = None, key: str | None = None, timeout_seconds: float = 5.0
) -> Answer | None:
    """GET, or POST of a JSON body. None when nobody answers in time."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(timeout_seconds):
            reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=parts.scheme == "https" or None)
            try:
                writer.write(_head(parts.netloc, parts.path.rstrip("/") + path, body, key))
                await writer.drain()
                return _parse(await reader.read(_MAX_BYTES))
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return None


async def healthy(url: str, path: str, key: str | None = None, timeout_seconds: float = 2.0) -> bool:
    """True when the path answers 200."""
    answer = await request(url, path, key=key, timeout_seconds=timeout_seconds)
    return answer is not None and answer.status == 200


async def listens(host: str, port: int, timeout_seconds: float = 1.0) -> bool:
    """True when something accepts connections there."""
    try:
        async with asyncio.timeout(timeout_seconds):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def _head(host: str, path: str, body: Mapping[str, Any] | None, key: str | None) -> bytes:
    payload = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{'GET' if body is None else 'POST'} {path} HTTP/1.1",
        f"Host: {host}",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(payload)}",
        *([f"Authorization: Bearer {key}"] if key else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + payload


def _parse(raw: bytes) -> Answer | None:
    """A whole reply, read to the end of the connection. Chunked bodies are put together."""
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    words = first.split(b" ")
    if len(words) < 2 or not words[1].isdigit():
        return None
    if any(line.lower().replace(b" ", b"") == b"transfer-encoding:chunked" for line in lines):
        body = _unchunked(body)
    return Answer(int(words[1]), body)


def _unchunked(body: bytes) -> bytes:
    parts: list[bytes] = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        parts.append(rest[:length])
        if length == 0:
            break
        body = rest[length + 2 :]
    return b"".join(parts)
