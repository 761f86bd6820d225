"""The filter language of OpenAI's vector stores: comparisons on a file's attributes, joined by ``and`` / ``or``.

A filter is compiled once into a predicate over one file's attributes. It runs over the *files* of a store, never over
chunks: the numbers of the files that pass become the pre-filter of the vector search. So changing a file's
attributes touches no vector.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from lmtower.stores.faults import invalid

Value = str | float | bool
Attributes = Mapping[str, Value]
Predicate = Callable[[Attributes], bool]

MAX_DEPTH = 8
MAX_NODES = 256
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}


def compile_filter(node: object) -> Predicate:
    """Raises ApiError (400) that names the part at fault."""
    budget = [MAX_NODES]
    return _compile(node, "filters", 0, budget)


def _compile(node: object, where: str, depth: int, budget: list[int]) -> Predicate:
    budget[0] -= 1
    if depth > MAX_DEPTH or budget[0] < 0:
        raise invalid(f"{where}: filters may nest {MAX_DEPTH} deep and have {MAX_NODES} parts.", where)
    if not isinstance(node, dict) or not isinstance(node.get("type"), str):
        raise invalid(f"{where}: a filter is an object with a 'type'.", where)
    kind = node["type"]
    if kind in ("and", "or"):
        return _compound(kind, node, where, depth, budget)
    key = node.get("key")
    if not isinstance(key, str):
        raise invalid(f"{where}.key: must be the name of an attribute.", where)
    return _comparison(kind, key, node.get("value"), where)


def _compound(kind: str, node: dict[str, object], where: str, depth: int, budget: list[int]) -> Predicate:
    parts = node.get("filters")
    if not isinstance(parts, list) or not parts:
        raise invalid(f"{where}.filters: {kind!r} needs a list of at least one filter.", where)
    inner = [_compile(part, f"{where}.filters[{i}]", depth + 1, budget) for i, part in enumerate(parts)]
    if kind == "and":
        return lambda attributes: all(predicate(attributes) for predicate in inner)
    return lambda attributes: any(predicate(attributes) for predicate in inner)


def _comparison(kind: str, key: str, value: object, where: str) -> Predicate:
    if kind in ("in", "nin"):
        if not isinstance(value, list) or not all(_is_value(item) for item in value):
            raise invalid(f"{where}.value: {kind!r} needs a list of strings or numbers.", where)
        wanted = value
        inside = kind == "in"
        return lambda attributes: any(_same(attributes.get(key), item) for item in wanted) is inside
    if not _is_value(value):
        raise invalid(f"{where}.value: must be a string, a number or a boolean.", where)
    if kind in ("eq", "ne"):
        equal = kind == "eq"
        return lambda attributes: _same(attributes.get(key), value) is equal
    if kind not in _ORDERS:
        raise invalid(f"{where}.type: {kind!r} is none of eq, ne, gt, gte, lt, lte, in, nin, and, or.", f"{where}.type")
    compare = _ORDERS[kind]
    return lambda attributes: _comparable(attributes.get(key), value) and compare(attributes[key], value)


def _is_value(value: object) -> bool:
    return isinstance(value, str | int | float | bool)


def _same(left: object, right: object) -> bool:
    """``True`` is not 1 here: a boolean equals only a boolean."""
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def _comparable(left: object, right: object) -> bool:
    """Numbers compare with numbers and strings with strings; anything else, or a missing key, does not pass."""
    if isinstance(left, bool) or isinstance(right, bool):
        return False
    if isinstance(left, str) or isinstance(right, str):
        return isinstance(left, str) and isinstance(right, str)
    return left is not None
