"""Reading an engine's JSON answer: an object or a Fault, never a surprise."""

from __future__ import annotations

from typing import Any

import msgspec

from lmtower.wire.engine_faults import from_stream
from lmtower.wire.faults import Fault


def read_object(data: bytes) -> dict[str, Any]:
    """The object that an engine answered with. Raises Fault when it is none."""
    try:
        parsed = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        parsed = None
    if not isinstance(parsed, dict):
        raise Fault(502, "engine_error", "The engine's answer is not valid JSON.")
    return parsed


def read_success(data: bytes) -> dict[str, Any]:
    """The same, for answers in which an ``error`` field means that it is one. Raises Fault."""
    parsed = read_object(data)
    if parsed.get("error") is not None:
        raise from_stream(data)
    return parsed
