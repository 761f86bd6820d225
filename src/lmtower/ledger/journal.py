"""The journal: one line per request in append-only segment files, written before anything else hears of it.

Theory of operation. A process appends to a segment of its own, ``<nanoseconds>-<random>.jsonl``, with one
``write`` per record. The kernel has the bytes when ``write`` returns, so ``kill -9`` loses nothing. The writer
holds a lock (``flock``) on its segment as long as it lives; whoever drains sees by that lock whether a segment
can still grow. A line that was torn (disk full, power) is closed by a line break before the next record and
skipped by readers. Records that cannot be written wait in memory and are written first when the disk takes
bytes again.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec

from lmtower.ledger.types import UsageRecord

SUFFIX = ".jsonl"
SEGMENT_BYTES = 16 * 1024**2
MAX_WAITING = 100_000
"""Records kept in memory while the disk refuses them: about 60 MB; older ones are dropped and counted."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(UsageRecord).decode


class Journal:
    """The writing end. Not thread-safe: only the event loop's thread writes."""

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self.written = 0
        """Records that the disk has, since this process started."""
        self.errors = 0
        self.dropped = 0
        self.last_error: OSError | None = None
        self._segment_bytes = segment_bytes
        self._descriptor = -1
        self._size = 0
        self._torn = False
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)

    @property
    def waiting(self) -> int:
        """Records that the disk refused and that wait in memory."""
        return len(self._waiting)

    def append(self, record: UsageRecord) -> bool:
        """Write one record. False when the disk refused: it waits in memory for ``retry`` or the next ``append``."""
        line = _encode(record) + b"\n"
        if self._waiting:
            self._wait(line)
            return self.retry()
        if self._write(line):
            self.written += 1
            return True
        self._wait(line)
        return False

    def retry(self) -> bool:
        """Write what waits in memory. Returns whether nothing waits any more."""
        while self._waiting:
            if not self._write(self._waiting[0]):
                return False
            self._waiting.popleft()
            self.written += 1
        return True

    def _wait(self, line: bytes) -> None:
        if len(self._waiting) == MAX_WAITING:
            self.dropped += 1
        self._waiting.append(line)

    def _write(self, line: bytes) -> bool:
        try:
            if self._descriptor < 0 or self._size >= self._segment_bytes:
                self._next_segment()
            if self._torn:
                line = b"\n" + line
            count = os.write(self._descriptor, line)
        except OSError as exc:
            self.errors += 1
            self.last_error = exc
            return False
        self._size += count
        self._torn = count != len(line)
        if self._torn:
            self.errors += 1
            self.last_error = OSError(f"wrote {count} of {len(line)} bytes")
        return not self._torn

    def _next_segment(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f"{time.time_ns():019d}-{secrets.token_hex(6)}{SUFFIX}"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._close_segment()
        self._descriptor, self._size, self._torn = descriptor, 0, False

    def _close_segment(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)  # frees the lock: this segment is complete
            self._descriptor = -1

    def close(self) -> None:
        """Write what waits, as far as the disk takes it, and end the segment."""
        self.retry()
        self._close_segment()


def segments(folder: Path) -> list[Path]:
    """All segments, oldest first."""
    return sorted(folder.glob("*" + SUFFIX)) if folder.is_dir() else []


def is_complete(segment: Path) -> bool:
    """Whether no process can append to the segment any more. Raises FileNotFoundError."""
    descriptor = os.open(segment, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


def read(segment: Path, offset: int) -> Iterator[tuple[UsageRecord | None, int]]:
    """Records from ``offset`` on, each with the offset behind it; None for a torn line.

    An unfinished last line is not given: it may still grow. Raises FileNotFoundError.
    """
    with segment.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            if line != b"\n":
                yield _parse(line), offset


def count(folder: Path) -> int:
    """Lines in all segments, drained or not."""
    lines = 0
    for segment in segments(folder):
        with segment.open("rb") as file:
            while block := file.read(1 << 20):
                lines += block.count(b"\n")
    return lines


def _parse(line: bytes) -> UsageRecord | None:
    try:
        return _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
