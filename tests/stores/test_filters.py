"""The filter language, as a table of cases."""

from __future__ import annotations

import pytest

from lmtower.stores.faults import ApiError
from lmtower.stores.filters import compile_filter

FILE = {"year": 2024, "lang": "de", "draft": True, "size": 1.5}


def compare(kind: str, key: str, value: object) -> dict[str, object]:
    return {"type": kind, "key": key, "value": value}


@pytest.mark.parametrize(
    ("kind", "key", "value", "passes"),
    [
        ("eq", "year", 2024, True),
        ("eq", "year", 2024.0, True),
        ("eq", "year", "2024", False),
        ("eq", "draft", True, True),
        ("eq", "draft", 1, False),
        ("eq", "missing", "x", False),
        ("ne", "lang", "en", True),
        ("ne", "lang", "de", False),
        ("ne", "missing", "x", True),
        ("gt", "year", 2023, True),
        ("gt", "year", 2024, False),
        ("gte", "year", 2024, True),
        ("lt", "size", 2, True),
        ("lte", "size", 1.5, True),
        ("gt", "lang", "aa", True),
        ("gt", "lang", 5, False),
        ("gt", "missing", 0, False),
        ("lt", "draft", 5, False),
        ("in", "lang", ["de", "en"], True),
        ("in", "lang", ["fr"], False),
        ("in", "year", [2024], True),
        ("nin", "lang", ["fr"], True),
        ("nin", "lang", ["de"], False),
        ("nin", "missing", ["de"], True),
    ],
)
def test_comparison_passes_or_not(kind: str, key: str, value: object, passes: bool) -> None:
    """Numbers compare with numbers, strings with strings, and a missing key passes only a negation."""
    assert compile_filter(compare(kind, key, value))(FILE) is passes


def test_compounds_nest() -> None:
    """``and`` and ``or`` join any filters, themselves included."""
    either = {"type": "or", "filters": [compare("eq", "lang", "fr"), compare("gt", "year", 2020)]}
    both = {"type": "and", "filters": [either, compare("eq", "draft", True)]}
    assert compile_filter(both)(FILE) is True
    assert compile_filter(both)(FILE | {"draft": False}) is False
    assert compile_filter(either)({"lang": "fr"}) is True


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("year", "an object with a 'type'"),
        ({"type": "like", "key": "a", "value": "b"}, "'like' is none of"),
        ({"type": "eq", "value": 1}, "filters.key"),
        ({"type": "eq", "key": "a", "value": [1]}, "filters.value"),
        ({"type": "in", "key": "a", "value": "b"}, "needs a list"),
        ({"type": "and", "filters": []}, "at least one"),
        ({"type": "and", "filters": [{"type": "eq", "key": "a"}]}, "filters.filters[0].value"),
    ],
)
def test_bad_filter_is_refused_where_it_is_wrong(bad: object, words: str) -> None:
    """The error names the part at fault."""
    with pytest.raises(ApiError, match="filters") as caught:
        compile_filter(bad)
    assert words in caught.value.message
    assert caught.value.status == 400


def test_deep_filter_is_refused() -> None:
    """A filter that nests without end is refused before it costs anything."""
    deep: dict[str, object] = compare("eq", "a", 1)
    for _ in range(1000):
        deep = {"type": "and", "filters": [deep]}
    with pytest.raises(ApiError, match="nest"):
        compile_filter(deep)
