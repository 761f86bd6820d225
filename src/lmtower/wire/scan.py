"""Finds its way in raw JSON text without decoding it: where a message's role and content are.

The text has been validated by ``top.split`` before, so these functions may trust its grammar and only need
to skip values. Strings are skipped by one regular expression, which runs at C speed over megabytes.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_SPACE = re.compile(rb"[ \t\r\n]*")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]', re.DOTALL)
_ATOM = re.compile(rb"[^,\]} \t\r\n]+")


def skip_space(data: bytes | memoryview, at: int) -> int:
    """Index of the first byte at or after ``at`` that is not white space."""
    if at < len(data) and data[at] > 0x20:
        return at
    match = _SPACE.match(data, at)
    return match.end() if match else at


def skip_value(data: bytes | memoryview, at: int) -> int:
    """Index just past the JSON value that starts at ``at``."""
    first = data[at]
    if first == 0x22:
        match = _STRING.match(data, at)
        return match.end() if match else len(data)
    if first not in b"[{":
        match = _ATOM.match(data, at)
        return match.end() if match else len(data)
    depth = 0
    for token in _TOKEN.finditer(data, at):
        byte = data[token.start()]
        if byte in b"[{":
            depth += 1
        elif byte in b"]}":
            depth -= 1
            if depth == 0:
                return token.end()
    return len(data)


class Span(NamedTuple):
    """A value's place in the text: ``data[start:end]``."""

    start: int
    end: int


def starts(data: bytes | memoryview, at: int, wanted: frozenset[bytes]) -> dict[bytes, int]:
    """Where the values of the wanted fields begin in the object at ``at`` (``{``); missing fields are left out.

    Stops at the last one found, so that in ``{"role": "system", "content": <megabytes>}`` the content is not read.
    Names are compared as written: an escaped name (``"r\\u006fle"``) is not recognised, which no client sends.
    """
    found: dict[bytes, int] = {}
    at = skip_space(data, at + 1)
    while data[at] != 0x7D:
        name_end = skip_value(data, at)
        name = bytes(data[at + 1 : name_end - 1])
        at = skip_space(data, skip_space(data, name_end) + 1)
        if name in wanted:
            found[name] = at
            if len(found) == len(wanted):
                break
        at = skip_space(data, skip_value(data, at))
        if data[at] == 0x2C:
            at = skip_space(data, at + 1)
    return found


def first_item(data: bytes | memoryview) -> int | None:
    """Index of the first element of the array in ``data``; None when it is empty or no array."""
    at = skip_space(data, 0)
    if at >= len(data) or data[at] != 0x5B:
        return None
    at = skip_space(data, at + 1)
    return None if data[at] == 0x5D else at


def items(data: bytes | memoryview) -> list[Span]:
    """Places of all elements of the array in ``data``."""
    at = first_item(data)
    found: list[Span] = []
    while at is not None:
        end = skip_value(data, at)
        found.append(Span(at, end))
        at = skip_space(data, end)
        at = skip_space(data, at + 1) if data[at] == 0x2C else None
    return found
