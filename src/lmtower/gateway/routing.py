"""Which replica gets a request: the one that already has its prefix, unless that one is busy or broken.

Rendezvous hashing (highest random weight) gives every key an order of preference over the replicas that changes
for few keys when a replica comes or goes, and needs no memory at all.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

PREFIX_BYTES = 256
_USER = re.compile(rb'"role"\s*:\s*"user"\s*,')
_FIELDS: Mapping[str, bytes] = MappingProxyType(
    {"chat": b'"messages"', "messages": b'"messages"', "count_tokens": b'"messages"', "responses": b'"input"'}
)


class Candidate(NamedTuple):
    """What the choice needs to know of a replica."""

    name: str
    free: int
    """Free slots."""
    slots: int
    usable: bool
    """Healthy and its circuit closed."""


def weight(key: bytes, name: str) -> int:
    """Rank of a replica for a key; higher is better."""
    if len(key) > 64:  # the most that blake2b takes
        key = hashlib.blake2b(key).digest()
    return int.from_bytes(hashlib.blake2b(name.encode(), key=key, digest_size=8).digest())


def prefix_key(protocol: str, persona: str, body: bytes) -> bytes:
    """What the requests of one conversation have in common when nothing names it: how its first user message begins.

    System prompts say nothing here: thousands of conversations of one program share theirs, and each replica has it
    in its cache after one of them. The piece ends with the message, for what follows is another in every turn.
    """
    at = max(body.find(_FIELDS.get(protocol, b'"prompt"')), 0)
    user = _USER.search(body, at)
    if user is not None:
        at = user.end()
    end = at + PREFIX_BYTES
    if user is not None:
        closed = body.find(b'"}', at, end)
        end = closed if closed >= 0 else end
    return persona.encode() + b"\0" + body[at:end]


def choose(candidates: Sequence[Candidate], key: bytes | None, tried: frozenset[str] = frozenset()) -> int | None:
    """Index of the replica to use; None when none is usable.

    With a key: the best replica by rendezvous hashing that has a free slot. Without one, or when none has: the
    one with the largest share of free slots.
    """
    usable = [i for i, candidate in enumerate(candidates) if candidate.usable and candidate.name not in tried]
    if not usable:
        return None
    if key is not None:
        free = [i for i in usable if candidates[i].free > 0]
        if free:
            return max(free, key=lambda i: weight(key, candidates[i].name))
    return max(usable, key=lambda i: (candidates[i].free / max(1, candidates[i].slots), -i))
