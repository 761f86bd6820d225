"""The journal: every record on disk at once, whatever happens next."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtower.ledger import UsageRecord, journal
from lmtower.ledger.journal import Journal
from tests.ledger.records import record


def _all(folder: Path) -> list[UsageRecord]:
    return [found for segment in journal.segments(folder) for found in journal.read(segment, 0, 1000).records]


def test_record_is_in_the_file_when_append_returns(tmp_path: Path) -> None:
    """No buffer of ours stands between a record and the kernel."""
    written = Journal(tmp_path)
    assert written.append(record(1))
    assert _all(tmp_path) == [record(1)]
    assert written.append(record(2, ttft_seconds=0.5, retry=True, end_user="a\nb\u2028c"))
    assert _all(tmp_path) == [record(1), record(2, ttft_seconds=0.5, retry=True, end_user="a\nb\u2028c")]
    written.close()


def test_journal_is_private(tmp_path: Path) -> None:
    """End users' names are for the tower's owner only."""
    written = Journal(tmp_path / "journal")
    written.append(record())
    written.close()
    assert (tmp_path / "journal").stat().st_mode & 0o077 == 0
    assert journal.segments(tmp_path / "journal")[0].stat().st_mode & 0o077 == 0


def test_full_segment_is_followed_by_another(tmp_path: Path) -> None:
    """Segments stay small, in order, and only the last one can still grow."""
    written = Journal(tmp_path, segment_bytes=500)
    for number in range(10):
        written.append(record(number))
    segments = journal.segments(tmp_path)
    assert len(segments) > 2
    assert [journal.is_complete(segment) for segment in segments] == [True] * (len(segments) - 1) + [False]
    assert sorted(found.request_id for found in _all(tmp_path) if found) == [f"req_{n}" for n in range(10)]
    written.close()
    assert journal.is_complete(segments[-1])


def test_two_journals_in_one_folder_do_not_meet(tmp_path: Path) -> None:
    """Each process appends to a segment of its own."""
    first, second = Journal(tmp_path), Journal(tmp_path)
    for number in range(5):
        first.append(record(number))
        second.append(record(number + 5))
    assert len(journal.segments(tmp_path)) == 2
    assert {found.request_id for found in _all(tmp_path) if found} == {f"req_{n}" for n in range(10)}
    first.close()
    second.close()


@given(cut=st.integers(0, 400))
def test_torn_last_line_is_not_read(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """However many bytes of the last line exist, the lines before it are read and no more."""
    folder = tmp_path_factory.mktemp("journal")
    written = Journal(folder)
    written.append(record(1))
    whole = journal.segments(folder)[0].stat().st_size
    written.append(record(2))
    written.close()
    segment = journal.segments(folder)[0]
    os.truncate(segment, min(whole + cut, segment.stat().st_size - 1))
    assert _all(folder) == [record(1)]


def test_reading_goes_on_behind_an_offset(tmp_path: Path) -> None:
    """Each block comes with the place behind it."""
    written = Journal(tmp_path)
    for number in range(3):
        written.append(record(number))
    written.close()
    segment = journal.segments(tmp_path)[0]
    first = journal.read(segment, 0, 1)
    rest = journal.read(segment, first.end, 10)
    assert (first.records, rest.records) == ([record(0)], [record(1), record(2)])
    assert rest.end == segment.stat().st_size
    assert journal.read(segment, rest.end, 10) == ([], 0, rest.end)


@pytest.mark.parametrize("line", [b"{not json", b"\xff\xfe", b"[]", b'{"time": 1}', b'{"request_id": 5, "time": 1}'])
def test_broken_line_in_the_middle_is_skipped_and_told(tmp_path: Path, line: bytes) -> None:
    """A broken line is counted, and the records around it are read."""
    written = Journal(tmp_path)
    written.append(record(1))
    segment = journal.segments(tmp_path)[0]
    with segment.open("ab") as file:
        file.write(line + b"\n")
    written.append(record(2))
    written.close()
    assert journal.read(segment, 0, 10) == ([record(1), record(2)], 1, segment.stat().st_size)


class _Disk:
    """``os.write`` of a disk that can be full: takes so many bytes, then refuses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room: int | None = None
        self._write = os.write
        monkeypatch.setattr(journal.os, "write", self.write)

    def write(self, descriptor: int, data: bytes) -> int:
        if self.room is None:
            return self._write(descriptor, data)
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = self._write(descriptor, data[: self.room])
        self.room -= count
        return count


@pytest.mark.parametrize("room", [0, 1, 30])
def test_full_disk_keeps_records_in_memory_and_writes_them_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Nothing raises, nothing is lost, and a half-written line does not spoil the next."""
    disk = _Disk(monkeypatch)
    written = Journal(tmp_path)
    written.append(record(1))
    disk.room = room
    assert not written.append(record(2))
    assert not written.append(record(3))
    assert (written.written, written.waiting) == (1, 2)
    assert written.errors >= 2
    assert written.last_error is not None
    disk.room = None
    assert written.append(record(4))
    assert (written.written, written.waiting) == (4, 0)
    written.close()
    assert _all(tmp_path) == [record(1), record(2), record(3), record(4)]


@given(room=st.integers(0, 2000), more=st.integers(0, 5))
def test_several_records_in_one_write_cut_anywhere_are_all_read_once(room: int, more: int) -> None:
    """A disk that takes a part of a write that holds several lines: none is lost, none is written twice."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        disk = _Disk(patch)
        disk.room = room
        written = Journal(Path(name))
        for number in range(5):
            written.add(record(number))
        written.flush()
        for number in range(5, 5 + more):
            written.append(record(number))
        disk.room = None
        assert written.flush()
        assert (written.written, written.waiting) == (5 + more, 0)
        written.close()
        assert _all(Path(name)) == [record(number) for number in range(5 + more)]


def test_disk_that_stays_full_drops_the_oldest_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded; what is lost is counted."""
    monkeypatch.setattr(journal, "MAX_WAITING", 3)
    disk = _Disk(monkeypatch)
    disk.room = 0
    written = Journal(tmp_path)
    for number in range(5):
        written.append(record(number))
    assert (written.waiting, written.dropped) == (3, 2)
    disk.room = None
    assert written.flush()
    written.close()
    assert _all(tmp_path) == [record(2), record(3), record(4)]


def test_folder_that_cannot_be_made_is_a_refused_write(tmp_path: Path) -> None:
    """A journal folder in an impossible place does not stop a request."""
    (tmp_path / "file").write_text("")
    written = Journal(tmp_path / "file" / "journal")
    assert not written.append(record(1))
    assert written.waiting == 1
    written.close()


def test_count_counts_lines_of_all_segments(tmp_path: Path) -> None:
    """The lag after a restart starts from what the journal holds."""
    assert journal.count(tmp_path / "nothing") == 0
    written = Journal(tmp_path, segment_bytes=500)
    for number in range(7):
        written.append(record(number))
    assert journal.count(tmp_path) == 7
    written.close()
