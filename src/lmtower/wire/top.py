"""A JSON object at its top level: split into raw values, edited, joined again without touching the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from lmtower.wire.faults import Fault

SHORT = 32 * 1024
"""Below this, copying costs less than handling pieces."""
Piece = bytes | memoryview | msgspec.Raw
Top = dict[str, msgspec.Raw]
"""Field name -> its JSON text. Rules set ``msgspec.Raw``, too: plain bytes would be encoded once more."""

_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
encode = msgspec.json.Encoder().encode
_any = msgspec.json.Decoder()

NULL = b"null"
TRUE = b"true"


def split(body: bytes) -> Top:
    """The fields of a JSON object. The last of duplicate fields wins, as in every JSON library the engines use.

    Raises Fault(400) when the body is not one JSON object.
    """
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        what = "empty" if not body.strip() else f"not a JSON object: {exc}"
        raise Fault(400, "invalid_json", f"The request body is {what}.") from None


def join(top: Top) -> list[Piece]:
    """The object as pieces to be written one after the other: one for a short object, uncopied values of a long one."""
    return [encode(top)] if sum(map(len, top.values())) < SHORT else join_long(top)


def join_long(top: Top, **parts: Sequence[Piece]) -> list[Piece]:
    """The same, with fields whose text comes in parts."""
    pieces: list[Piece] = []
    for name, value in (*((name, (value,)) for name, value in top.items()), *parts.items()):
        pieces += (b",%b:" % encode(name), *value)
    pieces[:1] = [b"{" + bytes(pieces[0])[1:]] if pieces else [b"{"]
    pieces.append(b"}")
    return pieces


def encoded(value: Any) -> msgspec.Raw:
    """A value as the JSON text that a field is set to."""
    return msgspec.Raw(encode(value))


def size(pieces: Iterable[Piece]) -> int:
    """Total length in bytes."""
    return sum(map(len, pieces))


def given(top: Top, name: str) -> bool:
    """Whether the field is there and not null."""
    value = top.get(name)
    return value is not None and (len(value) != 4 or bytes(value) != NULL)


def value(top: Top, name: str) -> Any:
    """The decoded value of a small field, None when absent. Raises Fault(400) when it is broken JSON."""
    raw = top.get(name)
    if raw is None:
        return None
    try:
        return _any.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Fault(400, "invalid_json", f"The field {name!r} is not valid JSON.", param=name) from None


def text(top: Top, name: str) -> str | None:
    """A string field, None when absent or null. Raises Fault(400) when it is something else."""
    found = value(top, name)
    if found is None or isinstance(found, str):
        return found
    raise Fault(400, "invalid_type", f"The field {name!r} must be a string.", param=name)


def whole(top: Top, name: str) -> int | None:
    """A whole number, None when absent or null. Raises Fault(400) when it is something else."""
    found = value(top, name)
    if found is None or type(found) is int:
        return found
    if isinstance(found, float) and found.is_integer():
        return int(found)
    raise Fault(400, "invalid_type", f"The field {name!r} must be a whole number.", param=name)


def flag(top: Top, name: str) -> bool:
    """A boolean field, False when absent or null. Raises Fault(400) when it is something else."""
    raw = top.get(name)
    if raw is None:
        return False
    word = bytes(memoryview(raw)[:6])
    if word == TRUE:
        return True
    if word in (b"false", NULL):
        return False
    raise Fault(400, "invalid_type", f"The field {name!r} must be true or false.", param=name)
