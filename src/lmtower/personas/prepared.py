"""What a preparer makes of a request: the seam between the protocols and the gateway."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from lmtower.personas.compile import CompiledPersona
from lmtower.personas.rules import Trace
from lmtower.wire.reply import Reply
from lmtower.wire.top import Piece, Top


class Prepared(msgspec.Struct):
    """What is sent upstream and how its answer is read."""

    path: str
    pieces: list[Piece]
    stream: bool
    reply: Reply
    images: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    local: bytes | None = None
    """An answer that needs no engine."""
    more: tuple[list[Piece], ...] = ()
    """Bodies of further requests to the same path, when one request is too large for an engine."""


Preparer = Callable[[Top, CompiledPersona, str, str, Trace | None], Prepared]
"""(split body, persona, asked model name, request id, trace) -> Prepared"""
