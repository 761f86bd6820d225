"""Reading an engine's JSON answer: an object or a Fault, never a surprise."""

from __future__ import annotations

from typing import Any

import msgspec

from lmtower.wire.engine_faults import from_stream
from lmtower.wire.faults import Fault

MALFORMED = (TypeError, AttributeError, KeyError, IndexError, ValueError, msgspec.MsgspecError)
"""What a reply may raise besides Fault when an engine's answer has something else where its protocol has a text, a
number or an object. Whoever drives replies makes a Fault of it (``malformed``)."""


def malformed() -> Fault:
    """The fault of an engine whose answer is not what its protocol says."""
    return Fault(502, "engine_error", "The engine's answer is not what its protocol says.")


def read_object(data: bytes) -> dict[str, Any]:
    """The object that an engine answered with. Raises Fault when it is none."""
    try:
        parsed = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        parsed = None
    if not isinstance(parsed, dict):
        raise Fault(502, "engine_error", "The engine's answer is not valid JSON.")
    return parsed


def objects(answer: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A list of objects in an engine's answer; none when it is missing. Raises Fault when it is no such list."""
    found = answer.get(name) or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise Fault(502, "engine_error", f"The engine's answer has no list of objects as {name!r}.")
    return found


def read_success(data: bytes) -> dict[str, Any]:
    """The same, for answers in which an ``error`` field means that it is one. Raises Fault."""
    parsed = read_object(data)
    if parsed.get("error") is not None:
        raise from_stream(data)
    return parsed
