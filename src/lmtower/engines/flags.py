"""Flags and version ranges: ``{"max-num-seqs": 4, "enforce-eager": True}`` -> argv, ``">=0.27,<0.33"`` -> yes or no."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Iterable, Mapping
from typing import Any

Flags = dict[str, Any]

_COMPARE = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_CLAUSE = re.compile(r"\s*(>=|<=|==|!=|>|<)\s*(\d+(?:\.\d+)*)\s*")


def version_in(number: tuple[int, int, int], versions: str) -> bool:
    """Whether a version meets every clause of a range. An empty range holds for all. Raises ValueError."""
    for clause in filter(None, versions.split(",")):
        match = _CLAUSE.fullmatch(clause)
        if match is None:
            raise ValueError(f"{clause!r} is not a version clause; write it as >=0.27")
        if not _COMPARE[match[1]](number, _number(match[2])):
            return False
    return True


def merged(*layers: Mapping[str, Any]) -> Flags:
    """Layers laid over each other: later ones win in place, ``None`` takes a flag away."""
    flags: Flags = {}
    for layer in layers:
        flags.update({name.removeprefix("--"): value for name, value in layer.items()})
    return {name: value for name, value in flags.items() if value is not None}


def as_argv(flags: Mapping[str, Any]) -> tuple[str, ...]:
    """True -> ``--flag``, False -> ``--no-flag``, a list -> several words, a mapping -> JSON, else ``--flag value``."""
    return tuple(word for name, value in flags.items() for word in _words(name, value))


def _words(name: str, value: Any) -> Iterable[str]:
    if value is True:
        return (f"--{name}",)
    if value is False:
        return (f"--no-{name}",)
    if isinstance(value, list | tuple):
        return (f"--{name}", *(str(item) for item in value))
    if isinstance(value, Mapping):
        return (f"--{name}", json.dumps(value, separators=(",", ":")))
    return (f"--{name}", str(value))


def _number(text: str) -> tuple[int, ...]:
    """``0.27`` -> (0, 27, 0)."""
    return tuple([*(int(part) for part in text.split(".")), 0, 0][:3])
