"""Brings the database to the newest schema. Loads Alembic, so call it only when ``Database.is_current`` says no."""

from __future__ import annotations

from importlib.resources import as_file, files

from alembic import command
from alembic.config import Config
from sqlalchemy import text

from lmtower.ledger.database import Database

# Any constant will do; several towers that start at once on one PostgreSQL migrate one after the other.
_ADVISORY_LOCK = 0x6C6D746F776572


def upgrade(database: Database, revision: str = "head") -> None:
    """Run what is missing up to ``revision`` in one transaction. Raises LedgerError."""
    _run(database, revision, up=True)


def downgrade(database: Database, revision: str) -> None:
    """Go back to ``revision`` in one transaction. Raises LedgerError."""
    _run(database, revision, up=False)


def _run(database: Database, revision: str, *, up: bool) -> None:
    with as_file(files("lmtower.ledger") / "migrations") as folder, database.connection() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        config.set_main_option("version_locations", str(folder / "versions").replace("%", "%%"))
        config.set_main_option("path_separator", "newline")
        config.attributes["connection"] = connection
        (command.upgrade if up else command.downgrade)(config, revision)
