"""One ``up`` at a time on a data folder: the file says who is at work there before a tower answers."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmtower.errors import Refused

_FILE = "up.lock"


@contextmanager
def at_work(data_dir: Path) -> Iterator[None]:
    """Hold the folder until the end of the block. Raises Refused when another process does."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (data_dir / _FILE).open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused(
                f"another lmtower is starting engines with {data_dir} (process {_pid(data_dir)}). "
                "Wait for it, or end it: lmtower down"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def who_works(data_dir: Path) -> int | None:
    """The process that holds the folder; None when nobody does."""
    try:
        with (data_dir / _FILE).open("r+", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _pid(data_dir)
    except OSError:
        return None
    return None


def _pid(data_dir: Path) -> int:
    text = (data_dir / _FILE).read_text("ascii")
    return int(text) if text.isdigit() else 0
