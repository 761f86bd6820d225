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

import msgspec

from lmtower.errors import LedgerError
from lmtower.ledger import journal
from lmtower.ledger.database import Database, Execute
from lmtower.ledger.record import UsageRecord

BATCH_ROWS = 500
GROUP_ROWS = 100
"""Rows of one INSERT. The driver gives the interpreter lock back and waits for it again with every statement, and a
loop that serves at full rate pays for each of these hand-overs."""
_FIELDS = UsageRecord.__struct_fields__
_INTO = f"INSERT INTO usage ({', '.join(_FIELDS)}) VALUES "
_ROW = f"({', '.join('?' * len(_FIELDS))})"


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
        except OSError as exc:
            raise LedgerError(f"cannot drain the journal {str(folder)!r}: {exc.strerror}") from exc
    return done


def pending(database: Database, folder: Path) -> list[UsageRecord]:
    """Records that are not yet in SQL. Blocks. Raises LedgerError."""
    found = []
    for segment in journal.segments(folder):
        rows = database.query('SELECT "offset" FROM journal_offsets WHERE segment = ?', (segment.name,))
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
    if not segment.stat().st_size:
        return False
    with journal.still(segment.parent), database.transaction() as execute:
        offset = _locked_offset(execute, segment.name)
        block = journal.read(segment, offset, BATCH_ROWS)
        if block.end == offset:
            return False
        _insert(execute, block.records)
        execute('UPDATE journal_offsets SET "offset" = ? WHERE segment = ?', (block.end, segment.name))
    done.rows += len(block.records)
    done.torn += block.torn
    return len(block.records) + block.torn == BATCH_ROWS


def _insert(execute: Execute, records: list[UsageRecord]) -> None:
    """Rows of the usage table."""
    for at in range(0, len(records), GROUP_ROWS):
        group = records[at : at + GROUP_ROWS]
        values = chain.from_iterable(msgspec.structs.astuple(record) for record in group)
        execute(_INTO + ", ".join([_ROW] * len(group)), tuple(values))


def _locked_offset(execute: Execute, segment: str) -> int:
    """How far the segment was read, locked until the commit.

    If another process just finished and forgot it, this is 0 again, but then there is no segment to read either.
    """
    execute(
        'INSERT INTO journal_offsets (segment, "offset") VALUES (?, 0) '
        'ON CONFLICT (segment) DO UPDATE SET "offset" = journal_offsets."offset"',  # changes nothing but locks the row
        (segment,),
    )
    return int(execute('SELECT "offset" FROM journal_offsets WHERE segment = ?', (segment,))[0][0])


def _forget(database: Database, segment: Path) -> None:
    segment.unlink()
    with database.transaction() as execute:
        execute("DELETE FROM journal_offsets WHERE segment = ?", (segment.name,))


def oldest_pending_time(folder: Path) -> float | None:
    """When the oldest segment that still has bytes was begun; None: the journal is empty."""
    for segment in journal.segments(folder):
        stamp = segment.name.partition("-")[0]
        if stamp.isdigit() and segment.stat().st_size:
            return min(int(stamp) / 1e9, time.time())
    return None
