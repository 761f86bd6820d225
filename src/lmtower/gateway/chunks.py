"""Chunks of an engine's stream that come one in a read: known by their length, without the parser.

Theory of operation. An engine writes every token as one chunk, and most reads hold one chunk and nothing else. Between
two chunks the parser is always in the same state, waiting for the first digit of a size, so a whole chunk that it never
sees leaves nothing wrong in it. A read of n bytes that is a chunk can begin in one way only: with the size that makes
it n bytes long. Whatever does not begin like that (several chunks, a part of one, an extension, the last chunk of size
0) goes to the parser.

Where the parser is, is seen from the events inside: the last piece of the body that it found in a read ends an event,
and the read ends with one line break more, that of the chunk. A read that ended inside the chunk would end as the piece
does, and behind a chunk nothing else can end like this.
"""

from __future__ import annotations

from functools import lru_cache

EVENT_END = b"\n\n\r\n"
"""The end of a chunk that holds whole events."""


@lru_cache(4096)
def opening(length: int) -> bytes:
    """What a read of so many bytes begins with if it is one chunk; what it cannot begin with if it is too short."""
    digits = 1
    while length - digits - 4 >= 16**digits:
        digits += 1
    return b"%0*x\r\n" % (digits, length - digits - 4) if length > 5 else b"too short"


def is_between(data: bytes, last: bytes) -> bool:
    """Whether a read ends where a chunk and an event end. ``last`` is the last piece of the body that is in it."""
    return last.endswith(b"\n\n") and data.endswith(EVENT_END)
