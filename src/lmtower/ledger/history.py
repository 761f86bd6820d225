"""Fills the limits' windows with what was used before this process began, from SQL and the journal."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from lmtower.ledger import drain
from lmtower.ledger.accounts import Account, month_of
from lmtower.ledger.database import Database
from lmtower.ledger.types import UsageRecord
from lmtower.ledger.windows import DAY, MINUTE

_LONGEST_REQUEST = 6 * 3600.0
"""Usage counts at the end of a request, SQL is searched by its begin."""


class Use:
    """What one account used. ``requests`` count at their begin, everything else at the end of the request."""

    __slots__ = ("booked", "month", "requests", "spent")

    def __init__(self) -> None:
        self.requests: list[tuple[float, int]] = []
        self.booked: list[tuple[float, int, int]] = []
        self.spent = 0.0
        self.month = 0.0

    def fill(self, account: Account, now: float) -> None:
        """Put it into a new account."""
        for at, count in sorted(self.requests):
            account.requests_minute.add(at, count)
        for at, tokens, images in sorted(self.booked):
            account.book(at, tokens, images, 0.0)
        if month_of(now)[0] == self.month:
            account.spent_in_month(now)
            account.spent += self.spent


class History:
    """Use of the last day, the last minute and this month, by (scope, name). Each account takes its own once."""

    def __init__(self, uses: dict[tuple[str, str], Use]) -> None:
        self._uses = uses

    def fill(self, account: Account) -> None:
        """Give the account what it used before; nothing the second time."""
        use = self._uses.pop((account.scope, account.name), None)
        if use is not None:
            use.fill(account, time.time())


def read(database: Database, folder: Path, now: float) -> History:
    """Everything that limits need. Blocks; reads the last day and this month. Raises LedgerError."""
    uses: dict[tuple[str, str], Use] = {}
    month = month_of(now)[0]
    # The journal first: a record that is drained in between counts twice rather than never.
    waiting = drain.pending(database, folder)
    for scope, column in (("key", "client_id"), ("persona", "persona")):
        _add_requests(database, uses, scope, column, now)
        _add_booked(database, uses, scope, column, now)
        rows = database.query(
            f"SELECT {column}, SUM(cost) FROM usage WHERE time >= {month!r} AND cost > 0 GROUP BY {column}"
        )
        for name, spent in rows:
            _use(uses, scope, name).spent += spent
        _add_records(uses, scope, column, waiting, now, month)
    for use in uses.values():
        use.month = month
    return History(uses)


def _use(uses: dict[tuple[str, str], Use], scope: str, name: str) -> Use:
    return uses.setdefault((scope, name), Use())


def _add_requests(database: Database, uses: dict[tuple[str, str], Use], scope: str, column: str, now: float) -> None:
    rows = database.query(
        f"SELECT {column}, MAX(time), COUNT(*) FROM usage WHERE time > {now - MINUTE!r} AND NOT retry "
        f"AND outcome <> 'refused' GROUP BY {column}, CAST(time * 10 AS BIGINT)"
    )
    for name, at, count in rows:
        _use(uses, scope, name).requests.append((at, count))


def _add_booked(database: Database, uses: dict[tuple[str, str], Use], scope: str, column: str, now: float) -> None:
    end = "(time + duration_seconds)"
    for since, until, grain in ((now - DAY, now - MINUTE, MINUTE), (now - MINUTE, None, 0.1)):
        rows = database.query(
            f"SELECT {column}, MAX({end}), SUM(input_tokens + output_tokens), SUM(images) FROM usage "
            f"WHERE time > {since - _LONGEST_REQUEST!r} AND {end} > {since!r} "
            + (f"AND {end} <= {until!r} " if until is not None else "")
            + f"GROUP BY {column}, CAST({end} / {grain!r} AS BIGINT)"
        )
        for name, at, tokens, images in rows:
            _use(uses, scope, name).booked.append((at, int(tokens), int(images)))


def _add_records(
    uses: dict[tuple[str, str], Use],
    scope: str,
    column: str,
    records: Iterable[UsageRecord],
    now: float,
    month: float,
) -> None:
    for record in records:
        use = _use(uses, scope, getattr(record, column))
        if record.time > now - MINUTE and not record.retry and record.outcome != "refused":
            use.requests.append((record.time, 1))
        end = record.time + record.duration_seconds
        if end > now - DAY:
            use.booked.append((end, record.input_tokens + record.output_tokens, record.images))
        if record.time >= month:
            use.spent += record.cost
