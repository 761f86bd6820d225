"""A body read once: its top level, and the messages or input items in it, in one pass over their bytes.

Theory of operation
-------------------
Reading the top level skips every value, and reading the messages afterwards goes over nearly all of the body again.
So their list is looked for first: it begins behind its name, and it ends behind the last message, where what follows
is the rest of an object. A mark takes the list's place, then list and short body are read each for itself. JSON is
made of values: if both are valid, and the mark is the value of this field at the top, then so is the body, and the
list is the field's value, for whatever reason we looked there. In every other case the body is read as others are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import msgspec

from lmtower.wire import top as tops
from lmtower.wire.items import Items, Text
from lmtower.wire.top import Top

Read = Callable[[Text], Items | None]
_AROUND = 128 * 1024
"""So much may stand before the list, and so far from the body's end its last message may begin."""
_MOST_ENDS = 8
_OPENING = re.compile(rb'\s*+(\{\s*+"(\w{1,32}+)"\s*+:\s*+"?)')
_KINDS = (b"message", b"function_call", b"custom_tool_call", b"reasoning")
"""Types of input items: an opening that says the type may also be that of a tool."""
_END = re.compile(rb'\}\s*+\](?=\s*+(?:,\s*+"\w++"\s*+:|\}\s*+\Z))')
"""Where a list of objects in an object ends. The quotes of such a thing within a text would be escaped."""
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class Whole(NamedTuple):
    """The top level, and the conversation if it was read with it: its items and where it lies in the body."""

    top: Top
    items: Items | None = None
    place: tuple[int, int] = (0, 0)


def split(body: bytes, field: str, read: Read, mark: bytes) -> Whole:
    """The top level of a body whose conversation is in ``field``.

    ``mark`` is JSON that nobody can have written into the body. Raises Fault(400).
    """
    name = _name(field).search(body, 0, _AROUND) if field else None
    start = name.end() if name else 0
    for end in _ends(body, start) if start else ():
        try:
            top: Top = _fields.decode(b"".join((body[:start], mark, body[end:])))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        found = msgspec.Raw(memoryview(body)[start:end])
        items = read(found) if field in top and bytes(top[field]) == mark else None
        if items is None:
            break
        top[field] = found
        return Whole(top, items, (start, end))
    return Whole(tops.split(body))


@cache
def _name(field: str) -> re.Pattern[bytes]:
    return re.compile(rb'"%b"\s*+:\s*+(?=\[)' % re.escape(field.encode()))


def _ends(body: bytes, start: int) -> Iterator[int]:
    """Where the list that starts here may end: behind the beginning of its last element, as far as one can guess."""
    first = _OPENING.match(body, start + 1)
    if first is None:
        return
    opening, name = first.groups()
    begin = max(start, len(body) - _AROUND)
    last = body.rfind(opening, begin)
    while last >= 0 and name == b"type" and not body.startswith(_KINDS, last + len(opening)):
        last = body.rfind(opening, begin, last)
    if last >= 0:
        for _, end in zip(range(_MOST_ENDS), _END.finditer(body, last), strict=False):
            yield end.end()
