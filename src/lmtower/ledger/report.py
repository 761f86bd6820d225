"""Usage added up: grouped by client, persona, day and so on, with a total."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

import msgspec

from lmtower.errors import Refused
from lmtower.ledger.database import Database

GROUPS = (
    "client", "client_id", "persona", "engine", "replica", "end_user", "session", "protocol", "lane", "outcome",
    "status", "hour", "day", "month",
)  # fmt: skip
_TIMES = {"hour": "%Y-%m-%d %H:00", "day": "%Y-%m-%d", "month": "%Y-%m"}
_SUMS = (
    "input_tokens", "cached_tokens", "image_tokens", "output_tokens", "reasoning_tokens", "images",
    "tool_calls_valid", "tool_calls_repaired", "tool_calls_retried", "tool_calls_rejected",
    "queue_seconds", "duration_seconds",
)  # fmt: skip


class Row(msgspec.Struct, kw_only=True):
    """Sums over the requests of one group. Times of day are UTC."""

    group: dict[str, str] = {}
    requests: int = 0
    """Repeats by an SDK not counted."""
    retries: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    image_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    images: int = 0
    tool_calls_valid: int = 0
    tool_calls_repaired: int = 0
    tool_calls_retried: int = 0
    tool_calls_rejected: int = 0
    queue_seconds: float = 0.0
    duration_seconds: float = 0.0
    ttft_seconds: float = 0.0
    ttft_count: int = 0
    cost: float = 0.0

    @property
    def hit_rate(self) -> float | None:
        """Share of the input tokens that came from the prefix cache."""
        return self.cached_tokens / self.input_tokens if self.input_tokens else None

    @property
    def ttft_mean(self) -> float | None:
        """Mean time to first token of the requests that had one, in seconds."""
        return self.ttft_seconds / self.ttft_count if self.ttft_count else None

    def add(self, other: Row) -> None:
        """Add the sums of another row."""
        for name in self.__struct_fields__[1:]:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_dict(self) -> dict[str, Any]:
        """The groups and the sums side by side, for JSON and CSV."""
        sums = {name: getattr(self, name) for name in self.__struct_fields__[1:] if name != "ttft_count"}
        sums["ttft_seconds"] = self.ttft_mean
        return {**self.group, **sums, "hit_rate": self.hit_rate}


class Report(msgspec.Struct):
    """Rows in order (by time where time is a group, else the most tokens first) and their sum."""

    by: tuple[str, ...]
    rows: tuple[Row, ...]
    total: Row

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"by": self.by, "rows": [row.as_dict() for row in self.rows], "total": self.total.as_dict()}


def checked(by: Sequence[str]) -> tuple[str, ...]:
    """The groups without repeats. Raises Refused for one that does not exist."""
    for name in by:
        if name not in GROUPS:
            hint = get_close_matches(name, GROUPS, 1)
            advice = f"Did you mean {hint[0]!r}?" if hint else f"Known: {', '.join(GROUPS)}."
            raise Refused(f"usage cannot be grouped by {name!r}. {advice}")
    return tuple(dict.fromkeys(by))


def report(database: Database, by: tuple[str, ...], since: float | None, until: float | None) -> Report:
    """Add up what SQL has from ``since`` up to and without ``until``. Blocks. Raises LedgerError."""
    sums = ", ".join(f"SUM({name})" for name in _SUMS)
    sql = (
        f"SELECT {''.join(f'{_group(name)}, ' for name in by)}"
        f"SUM(CASE WHEN retry THEN 0 ELSE 1 END), SUM(CASE WHEN retry THEN 1 ELSE 0 END), {sums}, "
        "COALESCE(SUM(ttft_seconds), 0.0), COUNT(ttft_seconds), SUM(cost), COUNT(*) FROM usage"
    )
    bounds = {"time >= ?": since, "time < ?": until}
    wheres = {where: bound for where, bound in bounds.items() if bound is not None}
    if wheres:
        sql += f" WHERE {' AND '.join(wheres)}"
    if by:
        sql += f" GROUP BY {', '.join(str(at + 1) for at in range(len(by)))}"
    rows = database.query(sql, tuple(wheres.values()))
    found = _merge(_row(by, row) for row in rows if row[-1])
    if any(name in _TIMES for name in by):
        found.sort(key=lambda row: [row.group[name] for name in sorted(by, key=lambda name: name not in _TIMES)])
    else:
        found.sort(key=lambda row: (-row.input_tokens - row.output_tokens, list(row.group.values())))
    total = Row()
    for row in found:
        total.add(row)
    return Report(by, tuple(found), total)


def _group(name: str) -> str:
    if name not in _TIMES:
        return name
    return f"CAST(FLOOR(time / {3600 if name == 'hour' else 86_400}) AS BIGINT)"


def _row(by: tuple[str, ...], values: tuple[Any, ...]) -> Row:
    group = {name: _shown(name, value) for name, value in zip(by, values, strict=False)}
    row = Row(group=group)
    # The order of the columns is that of Row's fields; PostgreSQL adds up integers to Decimal.
    for name, value in zip(Row.__struct_fields__[1:], values[len(by) :], strict=False):
        setattr(row, name, type(getattr(row, name))(value))
    return row


def _shown(name: str, value: Any) -> str:
    if name not in _TIMES:
        return str(value)
    return time.strftime(_TIMES[name], time.gmtime(value * (3600 if name == "hour" else 86_400)))


def _merge(rows: Iterable[Row]) -> list[Row]:
    """Months come as days, because no SQL function for them is common to all databases."""
    merged: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = tuple(row.group.values())
        if key in merged:
            merged[key].add(row)
        else:
            merged[key] = row
    return list(merged.values())
