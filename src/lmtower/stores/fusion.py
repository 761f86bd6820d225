"""Reciprocal rank fusion: several rankings of the same things into one, without comparing their scores.

score(d) = sum over rankings of weight / (5 + rank(d)), Cormack, Clarke and Büttcher, SIGIR 2009. A vector distance and
a BM25 score have no common scale, ranks do. The paper's constant of 60 suits rankings by judges that are equally good;
here one is often far better than the other, and a flat curve lets what is middling in both beat what is first in the
good one. With 5, and a weight that fits the embedding model, hybrid is at least as good as the better of the two
(``benchmarks/retrieval.py``). Scores are divided by the best possible one, so that what is first everywhere scores 1.0
and a client's ``score_threshold`` between 0 and 1 means something.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

RANK_CONSTANT = 5

Key = TypeVar("Key", bound=Hashable)


def fuse(rankings: Sequence[Sequence[Key]], weights: Sequence[float] | None = None) -> list[tuple[Key, float]]:
    """Best first, with scores in (0, 1]. Ties keep the order of first appearance."""
    weights = weights or [1.0] * len(rankings)
    best = sum(weights) / (RANK_CONSTANT + 1)
    scores: dict[Key, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, key in enumerate(ranking, start=1):
            scores[key] = scores.get(key, 0.0) + weight / (RANK_CONSTANT + rank)
    if best <= 0:
        return []
    return sorted(((key, score / best) for key, score in scores.items()), key=lambda item: -item[1])
