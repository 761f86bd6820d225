"""The database: transactions on both kinds, connections that are kept, files that go away or are replaced."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lmtower.errors import LedgerError
from lmtower.ledger import keys
from lmtower.ledger.database import Database
from lmtower.ledger.keys import KeyTable

_BUMP = "UPDATE changes SET version = version + 1"
_VERSION = "SELECT version FROM changes"


def _bump_and_fail(database: Database, statement: str) -> None:
    with database.transaction() as execute:
        execute(_BUMP, ())
        if statement:
            execute(statement, ())
        raise FileNotFoundError


def test_transaction_takes_effect_at_its_end_or_not_at_all(database: Database) -> None:
    """Nobody sees half of it; what was raised inside comes out, and the next transaction can begin."""
    with database.transaction() as execute:
        assert execute(_BUMP, ()) == []
        assert execute(_VERSION, ()) == [(1,)]
        assert database.query(_VERSION) == [(0,)]
    assert database.query(_VERSION) == [(1,)]
    for statement, expected in (("SELECT nonsense FROM nowhere", LedgerError), ("", FileNotFoundError)):
        with pytest.raises(expected):
            _bump_and_fail(database, statement)
    with database.transaction() as execute:
        execute("UPDATE changes SET version = version + ? WHERE name = ?", (10, "clients"))
    assert database.query("SELECT name, version FROM changes WHERE version > ?", (5,)) == [("clients", 11)]


def test_connections_are_kept_but_not_many(tmp_path: Path) -> None:
    """One after the other share one; of those that were needed at once, a few stay open."""
    database = Database(None, tmp_path)
    database.prepare()
    for _ in range(3):
        database.query(_VERSION)
        assert len(database._idle) == 1
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(lambda _: database.query(_VERSION)[0][0], range(200))) == {0}
    assert 1 <= len(database._idle) <= 2
    database.close()
    assert database._idle == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger.db"]


def test_file_in_the_place_of_another_is_read_and_written(tmp_path: Path) -> None:
    """A backup that is put back under a running tower brings its keys with it, whatever number its version has."""
    running, backup = (Database(f"sqlite:///{tmp_path}/{name}.db", tmp_path) for name in ("ledger", "backup"))
    table = KeyTable()
    for database in (running, backup):
        database.prepare()
        keys.create(database, database.sqlite_path.stem if database.sqlite_path else "")
    assert table.refresh(running)
    assert not table.refresh(running)
    backup.close()
    for path in tmp_path.glob("ledger.db-*"):
        path.unlink()
    os.replace(tmp_path / "backup.db", tmp_path / "ledger.db")
    assert table.refresh(running)
    assert [client.name for client in table.clients()] == ["backup"]
    keys.create(running, "new")
    running.close()
    again = Database(running.url, tmp_path)
    assert [row.client.name for row in keys.listed(again)] == ["backup", "new"]
    again.close()


def test_file_that_is_gone_is_not_written_to(tmp_path: Path) -> None:
    """Its tables are missed, as an error, and not found in what was deleted; a new file is for its owner only."""
    database = Database(None, tmp_path)
    database.prepare()
    for path in tmp_path.glob("ledger.db*"):
        path.unlink()
    assert not database.exists()
    with pytest.raises(LedgerError, match=r"ledger\.db' failed: no such table"), database.transaction() as execute:
        execute(_BUMP, ())
    assert (tmp_path / "ledger.db").stat().st_mode & 0o777 == 0o600
    database.prepare()
    assert database.query(_VERSION) == [(0,)]
    database.close()


def test_folder_that_cannot_be_made_is_a_ledger_error(tmp_path: Path) -> None:
    """The path is named, and the reason is the system's."""
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match=r"cannot make the database .*file/ledger\.db': File exists"):
        Database(None, tmp_path / "file").prepare()
