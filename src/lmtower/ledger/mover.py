"""Moves the journal into SQL from a process of its own, at the lowest priority, when a tower is busy.

A thread would do the same work, but in turns with the event loop: every statement costs it the interpreter lock, and
answers wait for up to 20 ms. So the thread of ``Ledger`` moves what a quiet tower writes, and this process what a busy
one does. It starts with the first large round and ends after a minute without one. Because the tower is busy just then,
what the process imports is kept few: this module and what it names load no pydantic and, for SQLite, no SQLAlchemy.

The process reads one line of JSON (``Place``) from its standard input, then a line per round, and answers each with a
line of JSON (``Moved``). It ends with its input: when its tower is gone, however that went. A round that is cut short
is no loss: a batch is in SQL or still in the journal, never both.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lmtower.errors import LedgerError
from lmtower.ledger import drain
from lmtower.ledger.database import Database

if TYPE_CHECKING:
    from subprocess import Popen

NICENESS = 19


class Place(msgspec.Struct):
    """Where the journal is and where it goes. It may hold a password, so it is not on the command line."""

    folder: str
    data_dir: str
    url: str | None


class Moved(msgspec.Struct):
    """What a round did: rows, lines that could not be read, and why it failed if it did."""

    rows: int = 0
    torn: int = 0
    error: str = ""


class Mover:
    """The tower's end of the process, which runs only while it is needed. All of it blocks, but ``kill``."""

    def __init__(self, folder: Path, database: Database) -> None:
        self._place = Place(str(folder), str(database.data_dir), database.url)
        self._process: Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def move(self, stop: Callable[[], bool] = lambda: False) -> Moved:
        """Move everything that the journal holds now. Raises LedgerError.

        To end it early: first let ``stop`` say so, then ``kill``.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        line = b""
        with suppress(OSError):
            if not stop():
                process.stdin.write(b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
        if not line:
            self.close()
            raise LedgerError("the process that moves usage records into SQL ended; the next round starts another")
        moved = msgspec.json.decode(line, type=Moved)
        if moved.error:
            raise LedgerError(moved.error)
        return moved

    def kill(self) -> None:
        """End the process, in the middle of a round if need be. For any thread."""
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """End the process and wait until it is gone."""
        self.kill()
        process, self._process = self._process, None
        if process is not None:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with suppress(OSError):  # what it did not read
                    pipe.close()

    def _start(self) -> Popen[bytes]:
        import subprocess  # which the process itself does without

        command = [sys.executable, "-m", "lmtower.ledger.mover"]
        try:
            # In a thread and not by the event loop, which would copy the tower's page tables to make a child of it.
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._process = process
            os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(self._place) + b"\n")
        except OSError as exc:
            raise LedgerError(f"cannot start the process that moves usage records into SQL: {exc.strerror}") from exc
        return process


def main() -> None:
    """The process."""
    place = msgspec.json.decode(sys.stdin.buffer.readline(), type=Place)
    database = Database(place.url, Path(place.data_dir))
    while sys.stdin.buffer.readline():
        try:
            done = drain.drain(database, Path(place.folder))
            moved = Moved(done.rows, done.torn)
        except LedgerError as exc:
            moved = Moved(error=str(exc))
        sys.stdout.buffer.write(msgspec.json.encode(moved) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt, BrokenPipeError):  # Ctrl-C goes to the whole group; the tower ends this process
        main()
