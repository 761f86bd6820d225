"""Moves journal records into SQL, exactly once, in batches.

Theory of operation. For each segment the database holds how far it was read. A batch locks that row, reads on
from there, inserts the rows and moves the offset in one transaction: after a crash the work is either done or
not begun, and two processes that drain the same segment wait for each other. A segment that is complete and
read to its end is deleted first and its offset after it, so that an offset never goes before its file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lmtower.ledger import journal
from lmtower.ledger.database import Database
from lmtower.ledger.types import UsageRecord

if TYPE_CHECKING:
    from sqlalchemy import Connection

BATCH_ROWS = 500
GROUP_ROWS = 100
"""Rows of one INSERT. The driver gives the interpreter lock back and waits for it again with every statement, and a
loop that serves at full rate pays for each of these hand-overs."""
_FIELDS = UsageRecord.__struct_fields__
_INTO = f"INSERT INTO usage ({', '.join(_FIELDS)}) VALUES "
_ROW = f"({', '.join('?' * len(_FIELDS))})"
_INSERT = _INTO + _ROW
_INSERT_GROUP = _INTO + ", ".join([_ROW] * GROUP_ROWS)


class Drained(msgspec.Struct):
    """What one round did."""

    rows: int = 0
    torn: int = 0


def drain(database: Database, folder: Path, stop: Callable[[], bool] = lambda: False) -> Drained:
    """Move everything that the journal holds now; ``stop`` is asked between batches. Blocks. Raises LedgerError."""
    done = Drained()
    for segment in journal.segments(folder):
        try:
            # Asked before reading: what a writer appends after its lock is gone cannot exist.
            complete = journal.is_complete(segment)
            while not stop() and _batch(database, segment, done):
                pass
            if complete and not stop():
                _forget(database, segment)
        except FileNotFoundError:
            continue  # another process drained it to its end and deleted it
    return done


def pending(database: Database, folder: Path) -> list[UsageRecord]:
    """Records that are not yet in SQL. Blocks. Raises LedgerError."""
    found = []
    for segment in journal.segments(folder):
        name = segment.name.replace("'", "")
        rows = database.query(f"SELECT \"offset\" FROM journal_offsets WHERE segment = '{name}'")
        try:
            offset = int(rows[0][0]) if rows else 0
            while (block := journal.read(segment, offset, BATCH_ROWS)).end > offset:
                found += block.records
                offset = block.end
        except FileNotFoundError:
            continue
    return found


def _batch(database: Database, segment: Path, done: Drained) -> bool:
    """One transaction. Returns whether there may be more."""
    from sqlalchemy import update

    from lmtower.ledger.schema import journal_offsets

    if not segment.stat().st_size:
        return False
    with journal.still(segment.parent), database.writing() as connection:
        offset = _locked_offset(connection, segment.name)
        if offset is None:
            return True  # look again: the segment should be gone
        block = journal.read(segment, offset, BATCH_ROWS)
        if block.end == offset:
            return False
        _insert(connection, block.records)
        moved = update(journal_offsets).where(journal_offsets.c.segment == segment.name).values(offset=block.end)
        connection.execute(moved)
    done.rows += len(block.records)
    done.torn += block.torn
    return len(block.records) + block.torn == BATCH_ROWS


def _insert(connection: Connection, rows: list[UsageRecord]) -> None:
    """Rows of the usage table. SQLite's driver takes them as tuples, at half the time of the way through SQLAlchemy,
    which is a tenth of a small request's; none of our columns needs a conversion."""
    from sqlalchemy import insert

    from lmtower.ledger.schema import usage

    if not rows:
        return
    driver = connection.connection.driver_connection
    if connection.dialect.name == "sqlite" and driver is not None:
        tuples = [msgspec.structs.astuple(record) for record in rows]
        grouped = len(tuples) // GROUP_ROWS * GROUP_ROWS
        for at in range(0, grouped, GROUP_ROWS):
            driver.execute(_INSERT_GROUP, tuple(chain.from_iterable(tuples[at : at + GROUP_ROWS])))
        driver.executemany(_INSERT, tuples[grouped:])
    else:
        connection.execute(insert(usage), [msgspec.structs.asdict(record) for record in rows])


def _locked_offset(connection: Connection, segment: str) -> int | None:
    """How far the segment was read, locked until the commit; None: another process just finished and forgot it."""
    from sqlalchemy import select
    from sqlalchemy.dialects import postgresql, sqlite

    from lmtower.ledger.schema import journal_offsets

    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(insert(journal_offsets).values(segment=segment, offset=0).on_conflict_do_nothing())
    wanted = select(journal_offsets.c.offset).where(journal_offsets.c.segment == segment)
    offset = connection.execute(wanted.with_for_update()).scalar()
    return None if offset is None else int(offset)


def _forget(database: Database, segment: Path) -> None:
    from sqlalchemy import delete

    from lmtower.ledger.schema import journal_offsets

    segment.unlink()
    with database.writing() as connection:
        connection.execute(delete(journal_offsets).where(journal_offsets.c.segment == segment.name))


def oldest_pending_time(folder: Path) -> float | None:
    """When the oldest segment that still has bytes was begun; None: the journal is empty."""
    for segment in journal.segments(folder):
        stamp = segment.name.partition("-")[0]
        if stamp.isdigit() and segment.stat().st_size:
            return min(int(stamp) / 1e9, time.time())
    return None
