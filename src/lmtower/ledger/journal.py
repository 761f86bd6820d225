"""The journal: one line per request in append-only segment files, written before anything else hears of it.

Theory of operation. A process appends to a segment of its own, ``<nanoseconds>-<random>.jsonl``, with one ``write``
for one record or for several. The kernel has the bytes when ``write`` returns, so ``kill -9`` loses nothing. The writer
holds a lock (``flock``) on its segment as long as it lives; whoever drains sees by that lock whether a segment
can still grow. A line that was torn (disk full, power) is closed by a line break before the next record and
skipped by readers. Records that cannot be written wait in memory and are written first when the disk takes
bytes again.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from lmtower.ledger.record import UsageRecord

SUFFIX = ".jsonl"
SEGMENT_BYTES = 16 * 1024**2
MAX_WAITING = 100_000
"""Records kept in memory while the disk refuses them: about 60 MB; older ones are dropped and counted."""
MAX_LINES = 1000
"""Lines of one write."""

_encode_lines = msgspec.json.Encoder().encode_lines
_decode = msgspec.json.Decoder(UsageRecord).decode
_decode_lines = msgspec.json.Decoder(UsageRecord).decode_lines


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
        self._waiting: deque[UsageRecord] = deque(maxlen=MAX_WAITING)

    @property
    def waiting(self) -> int:
        """Records that wait in memory, for their ``flush`` or because the disk refused them."""
        return len(self._waiting)

    def append(self, record: UsageRecord) -> bool:
        """Write one record. False when the disk refused: it waits in memory for the next ``flush``."""
        self.add(record)
        return self.flush()

    def add(self, record: UsageRecord) -> None:
        """Let a record wait for ``flush``."""
        if len(self._waiting) == MAX_WAITING:
            self.dropped += 1
        self._waiting.append(record)

    def flush(self) -> bool:
        """Write what waits in memory. Returns whether nothing waits any more."""
        while self._waiting:
            if not self._write():
                return False
        return True

    def _write(self) -> bool:
        """Write some of the records that wait, at once. False when the disk took less than that."""
        waiting = self._waiting
        records = list(islice(waiting, MAX_LINES))
        data = _encode_lines(records)
        try:
            if self._descriptor < 0 or self._size >= self._segment_bytes:
                self._next_segment()
            mend = b"\n" if self._torn else b""
            count = os.write(self._descriptor, mend + data)
        except OSError as exc:
            self.errors += 1
            self.last_error = exc
            return False
        self._size += count
        written = data[: max(0, count - len(mend))]
        whole = count == len(mend) + len(data)
        # all of a line; a line break that is missing comes with the next write
        lines = len(records) if whole else written.count(b"\n") + data.startswith(b"\n", len(written))
        for _ in range(lines):
            waiting.popleft()
        self.written += lines
        self._torn = count < len(mend) or (bool(written) and not written.endswith(b"\n"))
        if not whole:
            self.errors += 1
            self.last_error = OSError(f"wrote {count} of {len(mend) + len(data)} bytes")
        return whole

    def _next_segment(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f"{time.time_ns():019d}-{os.urandom(6).hex()}{SUFFIX}"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._close_segment()
        self._descriptor, self._size, self._torn = descriptor, 0, False

    def _close_segment(self) -> None:
        if self._descriptor >= 0:
            if self._torn:
                with suppress(OSError):
                    os.write(self._descriptor, b"\n")
            os.close(self._descriptor)  # frees the lock: this segment is complete
            self._descriptor = -1

    def close(self) -> None:
        """Write what waits, as far as the disk takes it, and end the segment."""
        self.flush()
        self._close_segment()


def segments(folder: Path) -> list[Path]:
    """All segments, oldest first."""
    return sorted(folder.glob("*" + SUFFIX)) if folder.is_dir() else []


@contextmanager
def still(folder: Path) -> Iterator[None]:
    """No record leaves the journal meanwhile, in whatever process. Blocks, at most for one batch of those who move."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder.with_suffix(".lock"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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


class Block(NamedTuple):
    """Some lines of a segment."""

    records: list[UsageRecord]
    torn: int
    """Lines that no record could be made of."""
    end: int
    """The offset behind the last of them."""


def read(segment: Path, offset: int, most: int) -> Block:
    """Up to ``most`` lines from ``offset`` on. An unfinished last line is not read: it may still grow.

    Raises FileNotFoundError.
    """
    with segment.open("rb") as file:
        file.seek(offset)
        lines = list(islice(file, most))
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    data = b"".join(lines)
    try:
        records, torn = _decode_lines(data), 0
    except (msgspec.DecodeError, UnicodeDecodeError):
        parsed = [_parse(line) for line in lines if line != b"\n"]
        records = [record for record in parsed if record is not None]
        torn = len(parsed) - len(records)
    return Block(records, torn, offset + len(data))


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
