"""Images behind URLs: fetched here, from allowed hosts only, and put into the request as data.

Theory of operation
-------------------
An engine that fetches a URL itself looks its host up again: a name that led to a public address when it was checked
may lead into the private network a moment later (DNS rebinding), and a redirect may, too. So no engine ever sees a
URL. The host must be on the tower file's list; it is looked up once; every address that is not public is left out
unless the list names that address itself (or its network); the connection goes to the very address that was checked,
with the host's name for TLS and nothing of the client's request. Redirects are refused, and so is what is no image,
video or audio, takes longer than ``SECONDS`` or is larger than the limit.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import httptools

from lmtower.wire import images
from lmtower.wire.faults import Fault
from lmtower.wire.images import Found

SECONDS = 10.0
MOST_BYTES = 20 * 1024**2
AT_ONCE = 8
MOST_URLS = 64
_PIECE = 64 * 1024
_SAFE = "/?%:@!$&'()*+,;=~-._"
_MEDIA = ("image/", "video/", "audio/")


class Place(NamedTuple):
    """Where a URL leads: checked, with the address that will be used."""

    host: str
    port: int
    path: str
    tls: ssl.SSLContext | None
    family: int
    address: str


async def inline(found: Found, allowed: Sequence[str], most_bytes: int | None) -> bool:
    """Put the content of every URL in its place. Returns whether there was any. Raises Fault(400, 413)."""
    urls = list(dict.fromkeys(picture.url for picture in found.pictures if not picture.inline))
    if not urls:
        return False
    if len(urls) > MOST_URLS:
        message = f"The request has {len(urls)} images to fetch; at most {MOST_URLS} are allowed."
        raise Fault(400, "too_many_images", message, param="messages")
    # a task: timeouts and cancelling need one
    contents = await asyncio.create_task(_all(urls, allowed, most_bytes or MOST_BYTES))
    for picture in found.pictures:
        if not picture.inline:
            picture.replace(*contents[picture.url])
    return True


async def _all(urls: Sequence[str], allowed: Sequence[str], most: int) -> dict[str, tuple[str, bytes]]:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(url: str) -> tuple[str, bytes]:
        async with gate:
            try:
                async with asyncio.timeout(SECONDS):
                    return await _fetch(await locate(url, allowed), most)
            except TimeoutError:
                raise _failed(f"did not arrive within {SECONDS:g} s") from None
            except (OSError, ssl.SSLError, httptools.HttpParserError, asyncio.IncompleteReadError):
                raise _failed("could not be fetched") from None

    tasks = [asyncio.ensure_future(one(url)) for url in urls]
    try:
        return dict(zip(urls, await asyncio.gather(*tasks), strict=True))
    finally:
        for task in tasks:
            task.cancel()


async def locate(url: str, allowed: Sequence[str]) -> Place:
    """Where a URL may be fetched from. Raises Fault(400) when nowhere, OSError when nobody knows its host."""
    images.check_url(url, tuple(allowed))
    parts = urlsplit(url.strip())
    host, secure = (parts.hostname or "").rstrip("."), parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    path = quote(parts.path or "/", safe=_SAFE) + (f"?{quote(parts.query, safe=_SAFE)}" if parts.query else "")
    loop = asyncio.get_running_loop()
    answers = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for family, _, _, _, address in answers:
        if may_connect(str(address[0]), allowed):
            return Place(host, port, path, _tls() if secure else None, family, str(address[0]))
    raise images.not_allowed()


@cache
def _tls() -> ssl.SSLContext:
    """Reading the system's certificates takes a while: once."""
    return ssl.create_default_context()


def may_connect(address: str, allowed: Sequence[str]) -> bool:
    """Whether an address is public, or named by the list itself."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if images.is_public(found):
        return True
    return any(_names(entry, found) for entry in allowed)


def _names(entry: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an entry of the list is this address or its network, with or without a port behind it."""
    for text in (entry, entry.rpartition(":")[0]):
        try:
            return address in ipaddress.ip_network(text.strip("[]"), strict=False)
        except (ValueError, TypeError):
            continue
    return False


class _Answer:
    """Gathers one response; ``size`` is what it has, or what it says that it will have."""

    def __init__(self) -> None:
        self.media_type = ""
        self.body = bytearray()
        self.done = False
        self.length: int | None = None

    @property
    def size(self) -> int:
        return max(len(self.body), self.length or 0)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self.media_type = value.partition(b";")[0].strip().lower().decode("latin-1")
        elif name.lower() == b"content-length" and value.isdigit():
            self.length = int(value)

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.done = True


async def _fetch(place: Place, most: int) -> tuple[str, bytes]:
    """(media type, content)."""
    name = place.host if place.tls else None
    reader, writer = await asyncio.open_connection(
        place.address, place.port, ssl=place.tls, server_hostname=name, family=place.family
    )
    try:
        host = f"[{place.host}]" if ":" in place.host else place.host
        at = "" if place.port in (80, 443) else f":{place.port}"
        lines = (f"GET {place.path} HTTP/1.1", f"Host: {host}{at}", "Accept: */*", "User-Agent: lmtower")
        writer.write("\r\n".join((*lines, "Connection: close", "", "")).encode())
        return await _read(reader, most)
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader, most: int) -> tuple[str, bytes]:
    answer = _Answer()
    parser = httptools.HttpResponseParser(answer)
    while not answer.done:
        data = await reader.read(_PIECE)
        if not data:
            break
        parser.feed_data(data)
        if answer.size > most:
            raise _too_large(most)
    status = parser.get_status_code()
    if status != 200:
        raise _failed("is behind a redirect, which is not followed" if 300 <= status < 400 else f"gave status {status}")
    if answer.length not in (None, len(answer.body)):
        raise _failed("came only in part")
    content = bytes(answer.body)
    from lmtower.wire import pixels  # Pillow takes a while to load

    media_type = answer.media_type if answer.media_type.startswith(_MEDIA) else ""
    if not media_type or media_type.startswith("image/"):
        media_type = pixels.media_type(content) or ""
    if not media_type:
        raise _failed("is no image")
    return media_type, content


def _failed(what: str) -> Fault:
    return Fault(400, "image_not_fetched", f"An image {what}.", param="messages")


def _too_large(most: int) -> Fault:
    return Fault(413, "image_too_large", f"An image is larger than {most} bytes.", param="messages")
