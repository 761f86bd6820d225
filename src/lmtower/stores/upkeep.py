"""When a vector table is tended: a decision, no work.

Theory of operation. Tending rewrites all files of a table that are not full (a million rows), and its indices: seconds
at 100,000 rows, minutes at a million. Rows that are not in the indices yet are compared one by one, which costs a
search some milliseconds from 10,000 of them on; hundreds of small files slow it down too. So a table is tended when
what changed is worth it: at once while it is small, after ``TAIL_ROWS`` or ``WRITES`` when nothing else is to be done,
and when a quarter of it is new even if more is on its way. What a round replaced stays on disk for searches that had
begun before, and the files that it made may be put together once more: rounds follow, ``LITTER_SECONDS`` apart, until
one finds nothing to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from lmtower.stores.vectors import KEPT

TAIL_ROWS = 10_000
TAIL_SHARE = 50
BUSY_SHARE = 4
WRITES = 100
LITTER_SECONDS = KEPT.total_seconds() + 10.0


@dataclass(slots=True)
class _Debt:
    rows: int = 0
    writes: int = 0


@dataclass(slots=True)
class Upkeep:
    """Times are on one clock, in seconds."""

    _debts: dict[str, _Debt] = field(default_factory=dict)
    _littered: dict[str, float] = field(default_factory=dict)

    def wrote(self, name: str, rows: int) -> None:
        """So many rows were added to a table, or deleted from it."""
        debt = self._debts.setdefault(name, _Debt())
        debt.rows += rows
        debt.writes += 1

    def tended(self, name: str, now: float, *, changed: bool) -> None:
        """A round is over; ``changed``: it rewrote or removed something."""
        self._debts.pop(name, None)
        self._littered.pop(name, None)
        if changed:
            self._littered[name] = now

    def forget(self, name: str) -> None:
        """The table is gone."""
        self._debts.pop(name, None)
        self._littered.pop(name, None)

    def changed(self) -> list[str]:
        """Tables that were written to since their last round."""
        return list(self._debts)

    def due(self, name: str, table_rows: int, *, idle: bool) -> bool:
        """Whether what was written is worth a round now."""
        debt = self._debts[name]
        if debt.rows >= max(TAIL_ROWS, table_rows // BUSY_SHARE):
            return True
        return idle and (debt.rows >= min(TAIL_ROWS, table_rows // TAIL_SHARE) or debt.writes >= WRITES)

    def littered(self, now: float) -> Iterator[str]:
        """Tables whose last round left something behind that nobody can be reading any more."""
        for name, since in list(self._littered.items()):
            if now - since > LITTER_SECONDS and name not in self._debts:
                yield name
