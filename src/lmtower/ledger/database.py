"""The SQL database behind the ledger: SQLite in the data folder, or what the tower file's ``database`` names.

Statements are text, the same for both, with ``?`` where a value goes. SQLite is the standard library's module, so that
neither a tower nor the process that moves its records waits for SQLAlchemy (0.4 s of CPU); PostgreSQL is psycopg, in
SQLAlchemy's pool. Migrations run through SQLAlchemy on both (``connection``).
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmtower.errors import LedgerError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

HEAD = "0001"
"""The newest revision in ``migrations/versions``; a test holds the two together."""

_BUSY_SECONDS = 5.0
_MAX_IDLE = 2
"""SQLite connections kept open: one for keys, one for usage."""

Values = tuple[Any, ...]
Rows = list[Values]
Execute = Callable[[str, Values], Rows]
"""Runs one statement of a transaction. Its rows: none for one that only writes."""


class Database:
    """One database. Everything here blocks; the event loop calls it from a thread."""

    def __init__(self, url: str | None, data_dir: Path) -> None:
        self.url = url
        self.data_dir = data_dir
        self.sqlite_path = _sqlite_path(url, data_dir)
        self._url = _driver_url(url) if url and self.sqlite_path is None else None
        self._engine: Engine | None = None
        self._lock = threading.Lock()
        self._idle: list[tuple[object, sqlite3.Connection]] = []

    def exists(self) -> bool:
        """Whether there is anything to read: a server always, an SQLite file when it was made."""
        return self.sqlite_path is None or self.file() is not None

    def file(self) -> object:
        """What tells an SQLite file from another one that takes its place; None for a server, or when it is gone."""
        return None if self.sqlite_path is None else _identity(self.sqlite_path)

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

    def query(self, sql: str, values: Values = ()) -> Rows:
        """Rows of one SELECT. Raises LedgerError."""
        if self.sqlite_path is None:
            with self.transaction() as execute:
                return execute(sql, values)
        with self._sqlite(self.sqlite_path) as connection:
            return connection.execute(sql, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[Execute]:
        """Statements that take effect at the end, all or none; SQLite locks at once. Raises LedgerError."""
        if self.sqlite_path is None:
            with self.connection() as server:

                def execute(sql: str, values: Values) -> Rows:
                    result = server.exec_driver_sql(sql.replace("?", "%s"), values)
                    return [tuple(row) for row in result] if result.returns_rows else []

                yield execute
        else:
            with self._sqlite(self.sqlite_path) as connection, connection:
                connection.execute("BEGIN IMMEDIATE")
                yield lambda sql, values: connection.execute(sql, values).fetchall()

    @contextmanager
    def _sqlite(self, path: Path) -> Iterator[sqlite3.Connection]:
        """An open connection for one caller, kept for the next one unless that failed.

        Opening and closing cost many times what the SELECT costs that looks for changed keys: who is the last to close
        a database tidies up behind everyone.
        """
        try:
            file, connection = self._open(path)
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as exc:
            raise LedgerError(f"the database {str(path)!r} failed: {exc}") from exc
        with self._lock:
            self._idle.append((file, connection))
        self._close_idle(_MAX_IDLE)

    def _open(self, path: Path) -> tuple[object, sqlite3.Connection]:
        """A connection to the file that is there now; made, if there is none. Raises sqlite3.Error, LedgerError."""
        try:
            if (file := _identity(path)) is None:
                # Keys' hashes and end users' names are nobody else's business.
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
                file = _identity(path)
        except OSError as exc:
            raise LedgerError(f"cannot make the database {str(path)!r}: {exc.strerror}") from exc
        while (kept := self._take()) is not None:
            if kept[0] == file:
                return kept
            kept[1].close()  # of a file that was deleted or replaced
        connection = sqlite3.connect(path, _BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            _write_ahead(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return file, connection

    def _take(self) -> tuple[object, sqlite3.Connection] | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _close_idle(self, most: int) -> None:
        while len(self._idle) > most and (kept := self._take()) is not None:
            kept[1].close()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """The same transaction as SQLAlchemy has it. Raises LedgerError."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with self._sqlalchemy().begin() as connection:
                yield connection
        except SQLAlchemyError as exc:
            reason = str(getattr(exc, "orig", None) or exc).strip().splitlines()
            raise LedgerError(f"the database failed: {reason[0] if reason else type(exc).__name__}") from exc

    def _sqlalchemy(self) -> Engine:
        from sqlalchemy import NullPool, create_engine, event

        if (path := self.sqlite_path) is not None:
            engine = create_engine("sqlite://", creator=lambda: self._open(path)[1], poolclass=NullPool)
            event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
            return engine
        with self._lock:
            if self._engine is None:
                assert self._url is not None
                self._engine = create_engine(
                    self._url, pool_size=2, max_overflow=4, pool_pre_ping=True, connect_args={"connect_timeout": 5}
                )
            return self._engine

    def close(self) -> None:
        """Close what is kept open."""
        self._close_idle(0)
        with self._lock:
            if self._engine is not None:
                self._engine.dispose()
                self._engine = None


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


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
