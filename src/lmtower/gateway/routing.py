"""Which replica gets a request: the one that already has its prefix, unless that one is busy or broken.

Rendezvous hashing (highest random weight) gives every key an order of preference over the replicas that changes
for few keys when a replica comes or goes, and needs no memory at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple


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
    return int.from_bytes(hashlib.blake2b(name.encode(), key=key[:64], digest_size=8).digest())


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
