"""Messages, input items and content parts at a glance: which of them may hold a tool call or media.

A typed decoder reads the names of the fields as JSON does and skips every text unread, so a long history costs one
pass over its bytes, and an escaped letter in a name slips by nothing. Tool calls and images are both looked up here.
"""

from __future__ import annotations

import msgspec

_SHORT = 4096

ABSENT = msgspec.Raw(b"")
"""A field that is not there. Not None: for an optional ``Raw`` msgspec decodes the value after all."""


class Item(msgspec.Struct):
    """The fields that matter, as raw JSON."""

    content: msgspec.Raw = ABSENT
    output: msgspec.Raw = ABSENT
    type: msgspec.Raw = ABSENT
    tool_calls: msgspec.Raw = ABSENT
    image_url: msgspec.Raw = ABSENT
    video_url: msgspec.Raw = ABSENT
    audio_url: msgspec.Raw = ABSENT
    file_url: msgspec.Raw = ABSENT
    url: msgspec.Raw = ABSENT
    source: msgspec.Raw = ABSENT

    def names_media(self) -> bool:
        """Whether media sit here, or in the parts below."""
        return (
            self.image_url is not ABSENT
            or self.url is not ABSENT
            or self.source is not ABSENT
            or self.video_url is not ABSENT
            or self.audio_url is not ABSENT
            or self.file_url is not ABSENT
            or (self.content is not ABSENT and _parts_name_media(self.content))
            or (self.output is not ABSENT and _parts_name_media(self.output))
        )


_decode = msgspec.json.Decoder(list[Item]).decode


def read(raw: bytes | msgspec.Raw) -> list[Item] | None:
    """The items of a list; None when it is no list of objects, so that the caller has to look at the whole."""
    try:
        return _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def is_plain(raw: bytes) -> bool:
    """Whether a short text certainly holds no tool call and no media: cheaper than ``read``."""
    if len(raw) > _SHORT:
        return False
    # as text, because there ``in`` costs a quarter of what ``find`` costs on bytes; ``in`` on bytes costs even more
    text = raw.decode("latin-1")
    return not ("_call" in text or 'url"' in text or 'source"' in text or "tool_use" in text or "\\u00" in text)


def _parts_name_media(raw: msgspec.Raw) -> bool:
    if bytes(memoryview(raw)[:1]) != b"[":
        return False
    parts = read(raw)
    return parts is None or any(part.names_media() for part in parts)
