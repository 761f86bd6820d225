"""The SQL database behind the ledger: SQLite in the data folder, or what the tower file's ``database`` names.

SQLAlchemy is imported at the first statement that needs it. What every start needs (is the schema current?
which keys are there?) goes through ``query``, which for SQLite is the standard library's module.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmtower.errors import LedgerError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

HEAD = "0001"
"""The newest revision in ``migrations/versions``; a test holds the two together."""

_BUSY_SECONDS = 5.0


class Database:
    """One database. Everything here blocks; the event loop calls it from a thread."""

    def __init__(self, url: str | None, data_dir: Path) -> None:
        self.url = url
        self.data_dir = data_dir
        self.sqlite_path = _sqlite_path(url, data_dir)
        self._url = _driver_url(url) if url and self.sqlite_path is None else None
        self._engine: Engine | None = None
        self._lock = threading.Lock()

    def exists(self) -> bool:
        """Whether there is anything to read: a server always, an SQLite file when it was made."""
        return self.sqlite_path is None or self.sqlite_path.exists()

    def is_current(self) -> bool:
        """Whether the schema is the one that this lmtower wants. Raises LedgerError when it is a newer one."""
        found = self.revision()
        if found is not None and found > HEAD:
            raise LedgerError(
                f"the database is at revision {found}, this lmtower knows {HEAD}: it was used by a newer lmtower. "
                "Run that version, or choose another `database`"
            )
        return found == HEAD

    def revision(self) -> str | None:
        """Alembic's revision of the database; None when there are no tables yet."""
        if self.sqlite_path is not None:
            if not self.exists() or not self.query("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'"):
                return None
        elif not self.query(
            "SELECT 1 FROM pg_tables WHERE tablename = 'alembic_version' AND schemaname = ANY (current_schemas(false))"
        ):
            return None
        rows = self.query("SELECT version_num FROM alembic_version")
        return str(rows[0][0]) if rows else None

    def prepare(self) -> None:
        """Bring the schema up to date if it is not. Raises LedgerError."""
        if not self.is_current():
            from lmtower.ledger import migrate

            migrate.upgrade(self)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of one small constant SELECT, by the cheapest way there is. Raises LedgerError."""
        if self.sqlite_path is not None:
            try:
                with closing(sqlite3.connect(self.sqlite_path, timeout=_BUSY_SECONDS)) as connection:
                    return connection.execute(sql).fetchall()
            except sqlite3.Error as exc:
                raise LedgerError(f"cannot read {str(self.sqlite_path)!r}: {exc}") from exc
        with self.reading() as connection_:
            return [tuple(row) for row in connection_.exec_driver_sql(sql)]

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection in a transaction that only reads. Raises LedgerError."""
        with self._connection({"lmtower_begin": "BEGIN"}) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection in a transaction that commits at the end; SQLite locks at once. Raises LedgerError."""
        with self._connection({"lmtower_begin": "BEGIN IMMEDIATE"}) as connection:
            yield connection

    @contextmanager
    def _connection(self, options: Mapping[str, Any]) -> Iterator[Connection]:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with self._open().execution_options(**options).begin() as connection:
                yield connection
        except SQLAlchemyError as exc:
            reason = str(getattr(exc, "orig", None) or exc).strip().splitlines()
            raise LedgerError(f"the database failed: {reason[0] if reason else type(exc).__name__}") from exc

    def _open(self) -> Engine:
        with self._lock:
            if self._engine is None:
                self._engine = self._create()
            return self._engine

    def _create(self) -> Engine:
        from sqlalchemy import create_engine, event

        if self.sqlite_path is None:
            assert self._url is not None
            return create_engine(
                self._url, pool_size=2, max_overflow=4, pool_pre_ping=True, connect_args={"connect_timeout": 5}
            )
        if not self.sqlite_path.exists():
            # Keys' hashes and end users' names are nobody else's business.
            self.sqlite_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.sqlite_path, os.O_CREAT | os.O_RDWR, 0o600))
        engine = create_engine(f"sqlite:///{self.sqlite_path}", connect_args={"timeout": _BUSY_SECONDS})

        @event.listens_for(engine, "connect")
        def _prepare(connection: sqlite3.Connection, _record: object) -> None:
            connection.isolation_level = None  # we begin transactions ourselves, see _begin
            _write_ahead(connection)
            connection.execute("PRAGMA synchronous = NORMAL")

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql(connection.get_execution_options()["lmtower_begin"])

        return engine

    def close(self) -> None:
        """Close the pool."""
        with self._lock:
            if self._engine is not None:
                self._engine.dispose()
                self._engine = None


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch a new file to write-ahead logging. The busy timeout does not cover the switch, so wait here."""
    until = time.monotonic() + _BUSY_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def _sqlite_path(url: str | None, data_dir: Path) -> Path | None:
    if not url:
        return data_dir / "ledger.db"
    if url.startswith("sqlite"):
        path = url.partition(":///")[2].partition("?")[0]
        if not path or path == ":memory:":
            raise LedgerError("`database`: an SQLite URL needs a file: sqlite:///PATH")
        return Path(path)
    return None


def _driver_url(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if separator and scheme in ("postgres", "postgresql", "postgresql+psycopg"):
        return f"postgresql+psycopg://{rest}"
    raise LedgerError(f"`database`: {scheme!r} is not supported; write postgresql://USER@HOST/NAME or sqlite:///PATH")
