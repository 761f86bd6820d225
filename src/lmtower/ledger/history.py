"""Fills the limits' windows with what was used before this process began, from SQL and the journal."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from lmtower.ledger import drain
from lmtower.ledger.accounts import Account, month_of
from lmtower.ledger.database import Database
from lmtower.ledger.record import UsageRecord
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
    """Use of the last minute, day and month, by (scope, name). Each account takes its own once."""

    def __init__(self, uses: dict[tuple[str, str], Use], read_at: float) -> None:
        self._uses = uses
        self._read_at = read_at

    def fill(self, account: Account) -> None:
        """Give a new account what it used before; nothing the second time."""
        use = self._uses.pop((account.scope, account.name), None)
        if use is not None:
            use.fill(account, time.time())

    def replace(self, account: Account) -> None:
        """Give an account that counts already what it used in the day and month, that use included.

        What ended after the reading began may be counted twice, never not at all.
        """
        found = Account(account.scope, account.name, account.limits)
        self.fill(found)
        for window, own in ((found.tokens_day, account.tokens_day), (found.images_day, account.images_day)):
            for at, amount in own.entries():
                if at > self._read_at:
                    window.add(at, amount)
        account.tokens_day, account.images_day = found.tokens_day, found.images_day
        now = time.time()
        found.spent = max(found.spent_in_month(now), account.spent_in_month(now))
        account.spent, account.month_end = found.spent, found.month_end


def read(database: Database, folder: Path, now: float, *, day: bool = True, month: bool = True) -> History:
    """What limits need; ``day`` and ``month`` cost a scan of these and are left out when nothing is limited by them.

    Call it while the journal is ``still``: a record that moves into SQL meanwhile would count twice. Blocks. Raises
    LedgerError.
    """
    uses: dict[tuple[str, str], Use] = {}
    begin = month_of(now)[0]
    waiting = drain.pending(database, folder)
    _add_requests(database, uses, now)
    _add_booked(database, uses, now - MINUTE, None, 0.1)
    if day:
        _add_booked(database, uses, now - DAY, now - MINUTE, 600.0)
    if month:
        sql = f"SELECT client_id, persona, SUM(cost) FROM usage WHERE time >= {begin!r} GROUP BY client_id, persona"
        for client_id, persona, spent in database.query(sql):
            for use in _both(uses, client_id, persona):
                use.spent += spent
    _add_records(uses, waiting, now, begin)
    for use in uses.values():
        use.month = begin
    return History(uses, now)


def _both(uses: dict[tuple[str, str], Use], client_id: str, persona: str) -> tuple[Use, Use]:
    return uses.setdefault(("key", client_id), Use()), uses.setdefault(("persona", persona), Use())


def _add_requests(database: Database, uses: dict[tuple[str, str], Use], now: float) -> None:
    rows = database.query(
        f"SELECT client_id, persona, MAX(time), COUNT(*) FROM usage WHERE time > {now - MINUTE!r} AND NOT retry "
        "AND outcome <> 'refused' GROUP BY client_id, persona, CAST(time * 10 AS BIGINT)"
    )
    for client_id, persona, at, number in rows:
        for use in _both(uses, client_id, persona):
            use.requests.append((at, number))


def _add_booked(
    database: Database, uses: dict[tuple[str, str], Use], since: float, until: float | None, grain: float
) -> None:
    """Sums by slices of ``grain`` seconds; each counts as if all of it came with its last request."""
    end = "(time + duration_seconds)"
    rows = database.query(
        f"SELECT client_id, persona, MAX({end}), SUM(input_tokens + output_tokens), SUM(images) FROM usage "
        f"WHERE time > {since - _LONGEST_REQUEST!r} AND {end} > {since!r} "
        + (f"AND {end} <= {until!r} " if until is not None else "")
        + f"GROUP BY client_id, persona, CAST({end} / {grain!r} AS BIGINT)"
    )
    for client_id, persona, at, tokens, images in rows:
        for use in _both(uses, client_id, persona):
            use.booked.append((at, int(tokens), int(images)))


def _add_records(uses: dict[tuple[str, str], Use], records: Iterable[UsageRecord], now: float, month: float) -> None:
    for record in records:
        end = record.time + record.duration_seconds
        for use in _both(uses, record.client_id, record.persona):
            if record.time > now - MINUTE and not record.retry and record.outcome != "refused":
                use.requests.append((record.time, 1))
            if end > now - DAY:
                use.booked.append((end, record.input_tokens + record.output_tokens, record.images))
            if record.time >= month:
                use.spent += record.cost
