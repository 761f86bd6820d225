"""Messages, input items and content parts at a glance: which of them may hold a tool call or media.

A typed decoder reads the names of the fields as JSON does and skips every text unread, so a long history costs one
pass over its bytes, and an escaped letter in a name slips by nothing. Tool calls and images are both looked up here.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

_SHORT = 4096

ABSENT = msgspec.Raw(b"")
"""A field that is not there. Not None: for an optional ``Raw`` msgspec decodes the value after all."""
_LIST = 0x5B


class _Fields(msgspec.Struct, gc=False):
    """The fields that matter, as raw JSON."""

    content: msgspec.Raw = ABSENT
    output: msgspec.Raw = ABSENT
    type: msgspec.Raw = ABSENT
    image_url: msgspec.Raw = ABSENT
    video_url: msgspec.Raw = ABSENT
    audio_url: msgspec.Raw = ABSENT
    file_url: msgspec.Raw = ABSENT
    url: msgspec.Raw = ABSENT
    source: msgspec.Raw = ABSENT


class Item(_Fields, gc=False):
    """Any object: its tool calls are raw JSON as well."""

    tool_calls: msgspec.Raw = ABSENT


class Function(msgspec.Struct, gc=False):
    """What is called."""

    name: str
    arguments: str


class Call(msgspec.Struct, gc=False):
    """What a tool call must have for a chat template."""

    id: str
    function: Function


class Turn(_Fields, gc=False):
    """A chat message whose tool calls have what they must: read in the same pass, as nearly all can be."""

    tool_calls: list[Call] | None = None


Items = Sequence[Item | Turn]
Text = bytes | memoryview | msgspec.Raw
_items = msgspec.json.Decoder(list[Item]).decode
_turns = msgspec.json.Decoder(list[Turn]).decode


def read(raw: Text) -> list[Item] | None:
    """The items of a list; None when it is no list of objects, so that the caller has to look at the whole."""
    try:
        return _items(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def read_chat(raw: Text) -> Items | None:
    """The messages of a chat; None when it is no list of objects."""
    try:
        return _turns(raw)
    except msgspec.ValidationError:
        return read(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def is_plain(raw: bytes) -> bool:
    """Whether a short text certainly holds no tool call and no media: cheaper than ``read``."""
    if len(raw) > _SHORT:
        return False
    # as text, because there ``in`` costs a quarter of what ``find`` costs on bytes; ``in`` on bytes costs even more
    text = str(raw, "latin-1")
    return not ("_call" in text or 'url"' in text or 'source"' in text or "tool_use" in text or "\\u00" in text)


def with_media(items: Items) -> list[int]:
    """Which of them hold media, themselves or in the parts below."""
    return [
        index
        for index, item in enumerate(items)
        if not (
            item.image_url is item.url is item.source is item.video_url is item.audio_url is item.file_url is ABSENT
        )
        or (item.content is not ABSENT and _parts_name_media(item.content))
        or (item.output is not ABSENT and _parts_name_media(item.output))
    ]


def _parts_name_media(raw: msgspec.Raw) -> bool:
    if memoryview(raw)[0] != _LIST:
        return False
    parts = read(raw)
    return parts is None or bool(with_media(parts))
