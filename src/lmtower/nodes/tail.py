"""The end of a log file, and the file as it grows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

_BLOCK_BYTES = 1024**2
_LOOK_SECONDS = 0.2


def last_lines(path: Path, lines: int) -> str:
    """The last ``lines`` lines of at most the last mebibyte; empty when there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _BLOCK_BYTES))
            return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


async def follow_file(path: Path, lines: int) -> AsyncIterator[str]:
    """The last lines, then every new one. Never ends by itself; starts over when the file was cut."""
    for line in (await asyncio.to_thread(last_lines, path, lines)).splitlines():
        yield line
    position = await asyncio.to_thread(_size, path)
    rest = b""
    while True:
        chunk, position = await asyncio.to_thread(_read_from, path, position)
        *whole, rest = (rest + chunk).split(b"\n")
        for raw in whole:
            yield raw.decode("utf-8", "replace")
        if not chunk:
            await asyncio.sleep(_LOOK_SECONDS)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read_from(path: Path, position: int) -> tuple[bytes, int]:
    if _size(path) < position:
        position = 0
    try:
        with path.open("rb") as file:
            file.seek(position)
            chunk = file.read(_BLOCK_BYTES)
    except FileNotFoundError:
        return b"", 0
    return chunk, position + len(chunk)
