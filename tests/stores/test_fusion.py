"""Reciprocal rank fusion."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lmtower.stores.fusion import fuse


def test_first_everywhere_scores_one() -> None:
    """What is first in every ranking has the best possible score."""
    assert fuse([["a", "b"], ["a", "c"]])[0] == ("a", 1.0)


def test_middling_in_both_beats_first_in_one() -> None:
    """Agreement counts: second in both rankings is better than first in one and absent in the other."""
    assert fuse([["x", "both"], ["y", "both"]])[0][0] == "both"


def test_weights_decide_between_rankings() -> None:
    """A ranking with more weight wins."""
    assert fuse([["v"], ["w"]], [0.2, 0.8])[0][0] == "w"
    assert fuse([["v"], ["w"]], [0.0, 0.0]) == []


@given(st.lists(st.lists(st.integers(0, 20), unique=True), min_size=1, max_size=4))
def test_everything_ranked_is_kept_once_best_first(rankings: list[list[int]]) -> None:
    """Fusion loses nothing, doubles nothing, sorts, and stays within (0, 1]."""
    fused = fuse(rankings)
    assert {key for key, _ in fused} == {key for ranking in rankings for key in ranking}
    scores = [score for _, score in fused]
    assert len(fused) == len({key for key, _ in fused})
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score <= 1.0000001 for score in scores)
