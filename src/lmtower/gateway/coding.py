"""Bodies that come compressed (``Content-Encoding``): decoded before anything looks into them.

Codex sends zstd when a person is signed in to ChatGPT, scripts and some SDKs' middleware send gzip. What a body may
grow to is ``gateway.max_body``, counted while it grows, so that a few kilobytes cannot become gigabytes.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

import zstandard

from lmtower.gateway.exchange import Request
from lmtower.wire.faults import Fault

_PIECE = 1024 * 1024
# RFC 9659 3: "decoders ... SHOULD support a Window_Size of no more than 8 MB"
_WINDOW = 8 * 1024 * 1024


def coding_of(headers: Mapping[bytes, bytes]) -> str:
    """The coding of a body, ``""`` when it comes as it is."""
    named = headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
    return "" if named == "identity" else named


async def decode(request: Request, coding: str, limit: int) -> None:
    """Put the decoded body in the request's place. Raises Fault: unknown coding, broken data, over ``limit`` bytes."""
    decoder = _DECODERS.get(coding)
    if decoder is None:
        known = ", ".join(sorted({"gzip", "deflate", "zstd"}))
        message = f"The content encoding {coding[:40]!r} is not supported: send one of {known}, or no encoding."
        # RFC 9110 15.5.16: "If the problem was caused by an unsupported content coding, the Accept-Encoding
        # response header field ought to be used"
        accepted = (b"accept-encoding", known.encode())
        raise Fault(415, "unsupported_encoding", message, should_retry=False, headers=(accepted,))
    try:
        # in a thread: a few kilobytes may be a hundred milliseconds of work
        request.body = await asyncio.to_thread(decoder, request.body, limit)
    except (zlib.error, zstandard.ZstdError):
        raise _broken(coding) from None


def _gzip(body: bytes, limit: int) -> bytes:
    return _inflate(body, limit, 31)


def _deflate(body: bytes, limit: int) -> bytes:
    """RFC 9110 8.4.1.2 means the zlib format; "some non-conformant implementations send ... without the wrapper"."""
    try:
        return _inflate(body, limit, zlib.MAX_WBITS)
    except zlib.error:
        return _inflate(body, limit, -zlib.MAX_WBITS)


def _inflate(body: bytes, limit: int, form: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while body:
        one = zlib.decompressobj(form)
        pieces.append(one.decompress(body, limit + 1 - size))
        size += len(pieces[-1])
        if size > limit:
            raise _too_large(limit)
        if not one.eof:
            raise zlib.error("the data end too early")
        body = one.unused_data  # gzip files may follow each other
    return b"".join(pieces)


def _zstd(body: bytes, limit: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    with zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(body, read_across_frames=True) as stream:
        while piece := stream.read(_PIECE):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
    return b"".join(pieces)


_DECODERS: Mapping[str, Callable[[bytes, int], bytes]] = MappingProxyType(
    {"gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate, "zstd": _zstd}
)


def _broken(coding: str) -> Fault:
    return Fault(400, "invalid_encoding", f"The body is not {coding}, as its Content-Encoding says, or it is cut off.")


def _too_large(limit: int) -> Fault:
    message = f"Request too large: the decoded body is over the limit of {limit} bytes."
    return Fault(413, "request_too_large", message, should_retry=False)
