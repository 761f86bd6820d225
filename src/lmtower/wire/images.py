"""Images in requests of all protocols: found, counted, refused, scaled down. Pure; scaling is slow: use a thread.

Theory of operation. Most requests carry none: ``items`` tells which messages may, without decoding text, and only
those are decoded. Whatever names a place to fetch from is refused unless the tower file allows its host: fetching any
URL would be a door into the private network (SSRF). What is allowed the gateway fetches itself (``gateway.fetching``);
engines get data only.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from lmtower.config.types import Images
from lmtower.recipes.load import ImageTokens
from lmtower.wire.faults import Fault
from lmtower.wire.items import Items, Text, read, with_media

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HEADER = 64 * 1024
"""So much of an image's text nearly always says its size."""
Rest = Callable[[str], tuple[str, bytes | memoryview]]
_URL_KEYS = ("image_url", "video_url", "audio_url", "file_url", "url")


@dataclass(slots=True)
class Picture:
    """One image: where it sits (``holder[key]`` is its URL or base64 text) and what it holds.

    Of data that was cut out of a large body (``wire.abridged``), ``url`` is the beginning and ``rest`` the rest.
    """

    holder: dict[str, Any]
    key: str
    url: str
    message: int
    rest: bytes | memoryview = b""

    @property
    def inline(self) -> bool:
        return self.url.startswith("data:") or self.key == "data"

    @property
    def size(self) -> int:
        """The length of its URL or base64 text."""
        return len(self.url) + len(self.rest)

    def base64(self, most: int | None = None) -> bytes | None:
        """The image's base64 text, or (``most``) its beginning; None for an image behind a URL and for other media."""
        text = self.url
        if self.key != "data":
            if not text.startswith("data:image/"):
                return None
            text = text.partition(",")[2]
        return text.encode("ascii") + bytes(self.rest[:most])

    def replace(self, media_type: str, data: bytes) -> None:
        """Put another image in its place."""
        self.url, self.rest = base64.b64encode(data).decode("ascii"), b""
        if self.key == "url" and self.holder.get("type") == "url":  # Anthropic's source
            self.key = "data"
            self.holder.pop("url")
            self.holder["type"] = "base64"
        if self.key == "data":
            self.holder["media_type"] = media_type
        else:
            self.url = f"data:{media_type};base64,{self.url}"
        self.holder[self.key] = self.url


@dataclass(slots=True)
class Found:
    """The images of one field, and the messages that hold them, ready to be written back."""

    raws: list[msgspec.Raw]
    messages: dict[int, Any]
    pictures: list[Picture]

    def join(self) -> bytes:
        """The field again; only messages with images are written anew."""
        for index, message in self.messages.items():
            self.raws[index] = msgspec.Raw(msgspec.json.encode(message))
        return b"[" + b",".join(self.raws) + b"]"


def _nothing_cut(text: str) -> tuple[str, bytes]:
    return text, b""


def find(raw: Text, items: Items | None = None, rest: Rest = _nothing_cut) -> Found | None:
    """All media in ``messages`` or ``input``; None when there are none. Raises Fault(400) on broken JSON.

    ``items``: what ``items.read`` made of the field, if the caller has it already. ``rest`` is that of its body
    if ``raw`` is abridged (``wire.abridged``).
    """
    items = read(raw) if items is None else items
    if items is None and bytes(memoryview(raw)[:1]) != b"[":
        return None
    holders = None if items is None else with_media(items)
    if holders == []:
        return None
    try:
        raws = msgspec.json.decode(raw, type=list[msgspec.Raw])
        found = Found(raws, {}, [])
        for index in range(len(raws)) if holders is None else holders:
            message = msgspec.json.decode(raws[index])
            pictures = list(_pictures(message, index))
            for picture in pictures:
                picture.url, picture.rest = rest(picture.url)
                if not picture.inline:
                    picture.url, picture.rest = picture.url + str(picture.rest, "utf-8", "replace"), b""
            if pictures:
                found.messages[index] = message
                found.pictures.extend(pictures)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Fault(400, "invalid_json", "The messages are not valid JSON.", param="messages") from None
    return found if found.pictures else None


def _pictures(message: object, index: int) -> Iterator[Picture]:
    """Media of one message or input item, tool results included."""
    if not isinstance(message, dict):
        return
    yield from _of_part(message, index)
    for key in ("content", "output"):
        parts = message.get(key)
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, dict):
                yield from _pictures(part, index)


def _of_part(part: dict[str, Any], index: int) -> Iterator[Picture]:
    for key in _URL_KEYS:
        value = part.get(key)
        if isinstance(value, str) and (key != "url" or ":" in value[:8]):
            yield Picture(part, key, value, index)
        elif isinstance(value, dict) and isinstance(value.get("url"), str):
            yield Picture(value, "url", value["url"], index)
    source = part.get("source")
    if isinstance(source, dict):
        if isinstance(source.get("url"), str):
            yield Picture(source, "url", source["url"], index)
        elif isinstance(source.get("data"), str) and str(source.get("media_type", "image/")).startswith("image/"):
            yield Picture(source, "data", source["data"], index)


def check(found: Found, limits: Images, hosts: tuple[str, ...]) -> None:
    """Refuse what may not be fetched, too many images, or one that is too large. Raises Fault(400 or 413)."""
    for picture in found.pictures:
        if not picture.inline:
            check_url(picture.url, hosts)
        if limits.max_bytes is not None and picture.inline and picture.size * 3 // 4 > limits.max_bytes:
            raise Fault(413, "image_too_large", f"An image is larger than {limits.max_bytes} bytes.", param="messages")
    if limits.max_count is not None and len(found.pictures) > limits.max_count:
        raise Fault(
            400,
            "too_many_images",
            f"The request has {len(found.pictures)} images; this model takes at most {limits.max_count}.",
            param="messages",
        )


def check_url(url: str, hosts: tuple[str, ...]) -> None:
    """Refuse a URL that no allow-list names: ``host`` (ports 80 and 443) or ``host:port``. Raises Fault(400)."""
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").rstrip(".").lower(), parts.port
    except ValueError:
        raise not_allowed() from None
    usual = port in (None, 80, 443)
    named = {name.lower().strip("[]") for name in hosts}
    known = (usual and host in named) or f"{host}:{port}" in named or f"[{host}]:{port}" in named
    if parts.scheme not in ("http", "https") or not host or not known or parts.username is not None:
        raise not_allowed()


def not_allowed() -> Fault:
    """The refusal of an address; it does not say which of the rules it breaks."""
    message = "Images must be sent as data: URLs; fetching from this address is not allowed here."
    return Fault(400, "image_url_not_allowed", message, param="messages")


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is on the public internet, also when it is an IPv4 address written inside of an IPv6 one."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def shrink(found: Found, max_side: int) -> int:
    """Scale down, in place, every image whose longer side is above ``max_side`` pixels. Returns how many were."""
    from lmtower.wire import pixels

    changed = 0
    for picture in found.pictures:
        size = _dimensions(picture)
        raw = None if size is not None and max(size) <= max_side else _bytes_of(picture)
        smaller = pixels.scaled(raw, max_side) if raw is not None else None
        if smaller is not None:
            picture.replace(*smaller)
            changed += 1
    return changed


def _dimensions(picture: Picture) -> tuple[int, int] | None:
    """Width and height by the image's header; None for one behind a URL and for what is no image."""
    from lmtower.wire import pixels

    for most in (_HEADER, None):  # a long profile may come before the size
        raw = _bytes_of(picture, most)
        size = pixels.dimensions(raw) if raw is not None else None
        if size is not None or raw is None or not picture.rest:
            return size
    return None


def _bytes_of(picture: Picture, most: int | None = None) -> bytes | None:
    """The image itself, or its beginning; None for one behind a URL or for other media."""
    try:
        text = picture.base64(most)
        if text is None:
            return None
        return base64.b64decode(text[: len(text) // 4 * 4] if most else text, validate=False)
    except (binascii.Error, ValueError):
        raise Fault(400, "invalid_image", "An image is not valid base64.", param="messages") from None


def tokens(found: Found, rule: ImageTokens | None) -> int:
    """Tokens of all inline images by the recipe's formula; 0 without one. Reads headers only."""
    if rule is None:
        return 0
    sizes = map(_dimensions, found.pictures)
    return sum(image_tokens(*size, rule) for size in sizes if size is not None)


def image_tokens(width: int, height: int, rule: ImageTokens) -> int:
    """Tokens of one image of that many pixels.

    The processors scale each side to whole cells, then the whole image into its limits (``smart_resize`` of
    transformers' Qwen2-VL); an image has as many tokens as cells.
    """
    columns, rows = round(width / rule.cell), round(height / rule.cell)
    if columns * rows > rule.most:
        shrink = math.sqrt(width * height / rule.most)
        columns, rows = max(1, math.floor(width / shrink)), max(1, math.floor(height / shrink))
    elif columns * rows < rule.least:
        grow = math.sqrt(rule.least / (width * height))
        columns, rows = math.ceil(width * grow), math.ceil(height * grow)
    return min(columns * rows, rule.most) + rule.extra
