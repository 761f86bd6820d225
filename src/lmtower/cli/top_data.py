"""What ``lmtower top`` shows, from two looks at the tower: counters become rates. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_LINE = re.compile(r"^(\w+)(?:\{(.*)\})? ([0-9.eE+-]+|NaN)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_COUNTERS = {
    "lmtower_requests_total": "requests",
    "lmtower_input_tokens_total": "input_tokens",
    "lmtower_cached_tokens_total": "cached_tokens",
    "lmtower_output_tokens_total": "output_tokens",
}


@dataclass(frozen=True, slots=True)
class Memory:
    """A node's memory in bytes."""

    node: str
    total_bytes: int
    available_bytes: int
    reserve_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """The tower at one moment. ``counters`` are by (field, persona, engine)."""

    at: float
    status: Mapping[str, Any]
    counters: Mapping[tuple[str, str, str], float]
    memory: tuple[Memory, ...] = ()


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second, between two looks; ``hit_rate`` is None while no prompt came."""

    requests: float = 0.0
    input_tokens: float = 0.0
    cached_tokens: float = 0.0
    output_tokens: float = 0.0

    @property
    def hit_rate(self) -> float | None:
        """Cached share of the prompt tokens."""
        return self.cached_tokens / self.input_tokens if self.input_tokens else None


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything on the screen."""

    status: Mapping[str, Any]
    total: Rates
    engines: Mapping[str, Rates] = field(default_factory=dict)
    personas: Mapping[str, Rates] = field(default_factory=dict)
    memory: tuple[Memory, ...] = ()


def read_counters(page: str) -> dict[tuple[str, str, str], float]:
    """The counters of a ``/metrics`` page that the screen needs, summed over clients and lanes."""
    found: dict[tuple[str, str, str], float] = {}
    for line in page.splitlines():
        name, _, _ = line.partition("{")
        field = _COUNTERS.get(name)
        match = _LINE.match(line) if field else None
        if field is None or match is None:
            continue
        labels = dict(_LABEL.findall(match[2] or ""))
        key = field, labels.get("persona", ""), labels.get("engine", "")
        found[key] = found.get(key, 0.0) + float(match[3])
    return found


def frame(before: Look | None, now: Look) -> Frame:
    """Rates between two looks; zeros at the first one. A counter that fell (a restart) counts from zero."""
    personas: dict[str, dict[str, float]] = {}
    engines: dict[str, dict[str, float]] = {}
    total: dict[str, float] = {}
    seconds = now.at - before.at if before is not None else 0.0
    if before is not None and seconds > 0:
        for (name, persona, engine), value in now.counters.items():
            last = before.counters.get((name, persona, engine), 0.0)
            rate = (value - last if value >= last else value) / seconds
            for group in (personas.setdefault(persona, {}), engines.setdefault(engine, {}), total):
                group[name] = group.get(name, 0.0) + rate
    return Frame(
        now.status,
        Rates(**total),
        {name: Rates(**rates) for name, rates in engines.items()},
        {name: Rates(**rates) for name, rates in personas.items()},
        now.memory,
    )
