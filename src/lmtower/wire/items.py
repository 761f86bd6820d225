"""Messages, input items and content parts at a glance: which of them may hold a tool call or media.

A typed decoder reads the names of the fields as JSON does and skips every text unread, so a long history costs one
pass over its bytes, and an escaped letter in a name slips by nothing. Tool calls and images are both looked up here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

_SHORT = 4096

ABSENT = msgspec.Raw(b"")
"""A field that is not there. Not None: for an optional ``Raw`` msgspec decodes the value after all."""
_LIST = 0x5B


class _Fields(msgspec.Struct, gc=False):
    """Where media may be."""

    output: msgspec.Raw = ABSENT
    image_url: msgspec.Raw = ABSENT
    video_url: msgspec.Raw = ABSENT
    audio_url: msgspec.Raw = ABSENT
    file_url: msgspec.Raw = ABSENT
    url: msgspec.Raw = ABSENT
    source: msgspec.Raw = ABSENT


class Item(_Fields, gc=False):
    """Any object, with raw JSON for what matters in it."""

    content: msgspec.Raw = ABSENT
    type: msgspec.Raw = ABSENT
    tool_calls: msgspec.Raw = ABSENT


class Object(msgspec.Struct, gc=False):
    """Any object; what is in it is skipped."""


_Name = Annotated[str, msgspec.Meta(min_length=1)]


class Function(msgspec.Struct, gc=False):
    """What is called."""

    name: _Name
    arguments: str


class Call(msgspec.Struct, gc=False):
    """What a tool call must have for a chat template."""

    id: _Name
    function: Function


class Turn(_Fields, gc=False):
    """A message of a chat, and its tool calls."""

    content: msgspec.Raw = ABSENT
    tool_calls: list[Call] | None = None


class Block(_Fields, gc=False):
    """A part of a message of the Anthropic protocol. ``input``: that of a tool call."""

    content: msgspec.Raw = ABSENT
    type: str = ""
    input: Object | None = None


class Message(_Fields, gc=False):
    """A message of the Anthropic protocol."""

    content: list[Block] | str | None = None


class Input(_Fields, gc=False):
    """An input item of a response. ``arguments``: those of a tool call."""

    content: msgspec.Raw = ABSENT
    type: str = ""
    arguments: str | None = None


Items = Sequence[Item | Turn | Message | Input]
Text = bytes | memoryview | msgspec.Raw
_items = msgspec.json.Decoder(list[Item])
_turns = msgspec.json.Decoder(list[Turn])
_messages = msgspec.json.Decoder(list[Message])
_inputs = msgspec.json.Decoder(list[Input])


def read(raw: Text) -> Items | None:
    """The items of a list; None when it is no list of objects, so that the caller has to look at the whole."""
    try:
        return _items.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def read_chat(raw: Text) -> Items | None:
    """The messages of a chat, with their tool calls if these are as they must be."""
    return _read(_turns, raw)


def read_messages(raw: Text) -> Items | None:
    """The messages of the Anthropic protocol, with their parts if these are as they must be."""
    return _read(_messages, raw)


def read_responses(raw: Text) -> Items | None:
    """The input items of a response, with the arguments of tool calls if these are as they must be."""
    return _read(_inputs, raw)


def _read(decoder: msgspec.json.Decoder[Any], raw: Text) -> Items | None:
    """In one pass what is nearly always so; whatever is not, is read as raw items."""
    try:
        items: Items = decoder.decode(raw)
    except (msgspec.ValidationError, UnicodeDecodeError):
        return read(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    return items


def is_plain(raw: bytes) -> bool:
    """Whether a short text certainly holds no tool call and no media: cheaper than ``read``."""
    if len(raw) > _SHORT:
        return False
    # as text, because there ``in`` costs a quarter of what ``find`` costs on bytes; ``in`` on bytes costs even more
    text = str(raw, "latin-1")
    return not ("_call" in text or 'url"' in text or 'source"' in text or "tool_use" in text or "\\u00" in text)


def with_media(items: Sequence[Item | Turn | Message | Block | Input]) -> list[int]:
    """Which of them hold media, themselves or in the parts below."""
    return [
        index
        for index, item in enumerate(items)
        if not (
            item.image_url is item.url is item.source is item.video_url is item.audio_url is item.file_url is ABSENT
        )
        or _parts_hold_media(item.content)
        or (item.output is not ABSENT and _parts_hold_media(item.output))
    ]


def _parts_hold_media(parts: msgspec.Raw | list[Block] | str | None) -> bool:
    if isinstance(parts, msgspec.Raw):
        if parts is ABSENT or memoryview(parts)[0] != _LIST:
            return False
        items = read(parts)
        return items is None or bool(with_media(items))
    return isinstance(parts, list) and bool(with_media(parts))
