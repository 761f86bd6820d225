"""Draining: from the journal into SQL, each record exactly once."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from lmtower.errors import LedgerError
from lmtower.ledger import UsageRecord, drain, journal
from lmtower.ledger.database import Database, Execute
from lmtower.ledger.drain import Drained
from lmtower.ledger.journal import Journal
from tests.ledger.records import record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the journal is."""
    return tmp_path / "journal"


def _write(folder: Path, count: int, first: int = 0) -> None:
    written = Journal(folder, segment_bytes=20_000)
    for number in range(first, first + count):
        written.append(record(number))
    written.close()


def _ids(database: Database) -> list[str]:
    return [row[0] for row in database.query("SELECT request_id FROM usage ORDER BY id")]


def test_every_field_arrives_in_sql(database: Database, folder: Path) -> None:
    """A row holds what the record held."""
    full = UsageRecord(
        request_id="req_1", time=1.5, client_id="key_1", client="alice", end_user="eve", session="s", persona="plan",
        engine="e", replica="0", protocol="messages", lane="agent", outcome="cancelled", status=499, stream=True,
        input_tokens=1, cached_tokens=2, image_tokens=3, output_tokens=4, reasoning_tokens=5, images=6,
        tool_calls_valid=7, tool_calls_repaired=8, tool_calls_retried=9, tool_calls_rejected=10, queue_seconds=0.25,
        ttft_seconds=0.5, duration_seconds=2.5, retry=True, cost=0.125,
    )  # fmt: skip
    written = Journal(folder)
    written.append(full)
    drain.drain(database, folder)
    [row] = database.query(f"SELECT {', '.join(UsageRecord.__struct_fields__)} FROM usage")
    assert row == msgspec.structs.astuple(full)
    written.close()


def test_complete_segments_are_deleted_and_leave_no_offset(database: Database, folder: Path) -> None:
    """More than two batches over several segments arrive in order; nothing is left behind."""
    _write(folder, 1234)
    assert len(journal.segments(folder)) > 3
    assert drain.drain(database, folder).rows == 1234
    assert sorted(_ids(database)) == sorted(f"req_{n}" for n in range(1234))
    assert journal.segments(folder) == []
    assert database.query("SELECT * FROM journal_offsets") == []


def test_segment_in_use_is_drained_again_and_again_without_repeats(database: Database, folder: Path) -> None:
    """The segment that a tower writes to is read as far as it goes, and kept."""
    written = Journal(folder)
    for number in range(5):
        written.append(record(number))
        assert drain.drain(database, folder).rows == 1
        assert drain.drain(database, folder).rows == 0
    assert len(journal.segments(folder)) == 1
    assert drain.pending(database, folder) == []
    written.append(record(5))
    assert drain.pending(database, folder) == [record(5)]
    written.close()
    drain.drain(database, folder)
    assert _ids(database) == [f"req_{n}" for n in range(6)]


def test_crash_after_any_batch_repeats_and_loses_nothing(
    database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between batches, or failing inside one, the next round goes on exactly there."""
    monkeypatch.setattr(drain, "BATCH_ROWS", 10)
    _write(folder, 55)
    rounds = iter([False, False, True, True])
    assert drain.drain(database, folder, lambda: next(rounds)).rows == 20

    insert = drain._insert

    def broken(execute: Execute, records: list[UsageRecord]) -> None:
        insert(execute, records[:7])
        raise LedgerError("the power failed")

    with monkeypatch.context() as patch:
        patch.setattr(drain, "_insert", broken)
        with pytest.raises(LedgerError):
            drain.drain(database, folder)
    assert len(_ids(database)) == 20
    drain.drain(database, folder)
    assert _ids(database) == [f"req_{n}" for n in range(55)]


def test_crash_between_the_last_batch_and_the_deletion_counts_once(
    database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drained segment that was not deleted yet is deleted by the next round, not read again."""
    _write(folder, 5)
    with monkeypatch.context() as patch:
        patch.setattr(drain, "_forget", lambda *_: None)
        drain.drain(database, folder)
    assert len(journal.segments(folder)) == 1
    assert drain.drain(database, folder).rows == 0
    assert journal.segments(folder) == []
    assert len(_ids(database)) == 5


def test_torn_lines_are_counted_not_inserted(database: Database, folder: Path) -> None:
    """A broken line does not stop the ones behind it."""
    written = Journal(folder)
    written.append(record(1))
    with journal.segments(folder)[0].open("ab") as file:
        file.write(b'{"request_id": "tor\n')
    written.append(record(2))
    written.close()
    with journal.segments(folder)[0].open("ab") as file:
        file.write(b'{"request_id": "cut off by pow')
    done = drain.drain(database, folder)
    assert (done.rows, done.torn) == (2, 1)
    assert journal.segments(folder) == []


def test_many_drainers_at_once_count_once(database_url: str, tmp_path: Path, folder: Path) -> None:
    """A tower and the CLI may drain the same journal at the same time."""
    _write(folder, 700)
    databases = [Database(database_url, tmp_path) for _ in range(4)]
    databases[0].prepare()
    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(lambda database: drain.drain(database, folder).rows, databases))
    assert sum(done) == 700
    assert sorted(_ids(databases[0])) == sorted(f"req_{n}" for n in range(700))
    assert journal.segments(folder) == []
    for database in databases:
        database.close()


def test_two_towers_with_one_database_drain_their_own_journals(database_url: str, tmp_path: Path) -> None:
    """Segments of different towers never share an offset."""
    databases = [Database(database_url, tmp_path) for _ in range(2)]
    databases[0].prepare()
    for at in (0, 1):
        _write(tmp_path / f"tower{at}", 30, first=30 * at)
        drain.drain(databases[at], tmp_path / f"tower{at}")
    assert sorted(_ids(databases[0])) == sorted(f"req_{n}" for n in range(60))
    for database in databases:
        database.close()


@pytest.mark.parametrize("tokens", [10**30, -(10**30), 2**63])
def test_number_that_no_request_can_have_stops_nothing(database: Database, folder: Path, tokens: int) -> None:
    """An engine that reports nonsense costs its own record, not those behind it."""
    written = Journal(folder)
    for number, reported in enumerate((1, tokens, 10**12)):
        written.append(record(number, output_tokens=reported))
    written.close()
    assert drain.drain(database, folder) == Drained(rows=2, torn=1)
    assert _ids(database) == ["req_0", "req_2"]


def test_file_that_cannot_be_opened_is_a_ledger_error(
    database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has too many files open drains later; its background goes on."""
    _write(folder, 3)

    def refuse(_: Path) -> bool:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "is_complete", refuse)
        with pytest.raises(LedgerError, match=r"journal'.*Too many open files"):
            drain.drain(database, folder)
    assert drain.drain(database, folder).rows == 3
