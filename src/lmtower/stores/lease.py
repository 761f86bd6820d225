"""One process at a time ingests: a lock that dies with its holder, so that ``kill -9`` leaves nothing to wait for."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from sqlalchemy import Connection, Engine, text

RETRY_SECONDS = 2.0
_ADVISORY_KEY = 0x6C6D746F776572


class Lease:
    """A file lock beside an SQLite catalogue; an advisory lock of the session on PostgreSQL, which towers share."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine = engine
        self._path = path
        self._file: IO[bytes] | None = None
        self._connection: Connection | None = None
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    def when_held(self, start: Callable[[], None]) -> None:
        """Call ``start`` now, or from a thread once the other holder is gone."""
        if self._take():
            start()
            return

        def wait() -> None:
            while not self._released.wait(RETRY_SECONDS):
                if self._take():
                    start()
                    return

        self._thread = threading.Thread(target=wait, name="lmtower-lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        self._released.set()
        if self._thread is not None:
            self._thread.join()
        if self._file is not None:
            self._file.close()
        if self._connection is not None:
            self._connection.close()

    def _take(self) -> bool:
        if self._engine.dialect.name == "postgresql":
            return self._take_advisory()
        file = self._path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._file = file
        return True

    def _take_advisory(self) -> bool:
        connection = self._engine.connect()
        query = text("SELECT pg_try_advisory_lock(:key)")
        if not connection.execute(query, {"key": _ADVISORY_KEY}).scalar_one():
            connection.close()
            return False
        connection.commit()
        self._connection = connection
        return True
