"""Migrations: from nothing, from each revision, several at once, and what a newer database says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from lmtower.errors import LedgerError
from lmtower.ledger import keys, migrate
from lmtower.ledger.database import HEAD, Database
from lmtower.ledger.schema import metadata

_FOLDER = Path(migrate.__file__).parent / "migrations"


def _revisions() -> list[str]:
    script = ScriptDirectory(str(_FOLDER))
    return [revision.revision for revision in reversed(list(script.walk_revisions()))]


def _differences(database: Database) -> list[object]:
    with database.connection() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))


def test_head_is_the_newest_revision() -> None:
    """The constant that is checked at each start is what Alembic would say."""
    assert _revisions()[-1] == HEAD
    assert _revisions() == sorted(_revisions())


def test_empty_database_becomes_current(database_url: str, tmp_path: Path) -> None:
    """From nothing to tables that equal those in schema.py."""
    database = Database(database_url, tmp_path)
    assert database.revision() is None
    assert not database.is_current()
    database.prepare()
    assert database.is_current()
    assert _differences(database) == []
    database.close()


@pytest.mark.parametrize("revision", _revisions())
def test_each_revision_becomes_current(database_url: str, tmp_path: Path, revision: str) -> None:
    """From every revision that was ever released."""
    database = Database(database_url, tmp_path)
    migrate.upgrade(database, revision)
    assert database.revision() == revision
    database.prepare()
    assert database.is_current()
    assert _differences(database) == []
    keys.create(database, "alice")
    database.close()


def test_downgrade_to_nothing_and_up_again(database: Database) -> None:
    """Every migration can be undone."""
    migrate.downgrade(database, "base")
    assert database.revision() is None
    database.prepare()
    assert database.is_current()


def test_newer_database_is_refused_with_the_remedy(database: Database) -> None:
    """An old lmtower does not touch the tables of a newer one."""
    with database.transaction() as execute:
        execute("UPDATE alembic_version SET version_num = '9999'", ())
    with pytest.raises(LedgerError, match=r"9999.*newer lmtower"):
        database.prepare()


def test_towers_that_start_at_once_migrate_once(database_url: str, tmp_path: Path) -> None:
    """Several processes with one new database all end with the current schema."""
    databases = [Database(database_url, tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda database: database.prepare(), databases))
    assert all(database.is_current() for database in databases)
    for database in databases:
        database.close()


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "nonsense"])
def test_unusable_url_is_refused(tmp_path: Path, url: str) -> None:
    """The error says what to write instead."""
    with pytest.raises(LedgerError, match="sqlite:///"):
        Database(url, tmp_path)


def test_unreachable_server_is_a_ledger_error_without_the_password(tmp_path: Path) -> None:
    """A foreign error is translated at the border and shows no secret."""
    database = Database(f"postgresql://me:hush@/x?host={tmp_path}", tmp_path)
    with pytest.raises(LedgerError) as caught:
        database.prepare()
    assert "hush" not in str(caught.value)
