"""The process that moves what a busy tower writes into SQL: when there is one, how it ends, that it loses nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from lmtower.errors import LedgerError
from lmtower.ledger import Ledger, journal
from lmtower.ledger import ledger as ledger_module
from lmtower.ledger.database import Database
from lmtower.ledger.mover import Moved, Mover, Place
from tests.ledger.records import record
from tests.ledger.test_ledger import _requests, _until

NICE_SECONDS = 120.0
"""How long a process of the lowest priority may take on a busy machine."""


def _filled(folder: Path, count: int, first: int = 0) -> Path:
    writing = journal.Journal(folder / "journal")
    for number in range(first, first + count):
        writing.add(record(number))
    writing.close()
    return folder / "journal"


async def test_a_process_moves_much_and_the_tower_itself_moves_little(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few records start no process; many do, and it ends when it has had no work for long enough."""
    monkeypatch.setattr(ledger_module, "DRAIN_SECONDS", 0.02)
    ledger = Ledger.open(tmp_path, database_url)
    await ledger.start()
    for number in range(20):
        ledger.record(record(number))
    await _until(lambda: ledger.lag_records == 0)
    assert not ledger._mover.running
    for number in range(20, 3000):
        ledger.record(record(number))
    await _until(lambda: ledger.lag_records == 0, NICE_SECONDS)
    assert ledger._mover.running
    monkeypatch.setattr(ledger_module, "MOVER_SECONDS", 0.0)
    await _until(lambda: not ledger._mover.running)
    assert await asyncio.to_thread(_requests, ledger) == 3000
    await ledger.close()
    assert journal.segments(tmp_path / "journal") == []


async def test_process_killed_in_a_round_is_replaced_and_nothing_counts_twice(tmp_path: Path) -> None:
    """The round that it was in fails with a reason; the next one starts another process and ends the work."""
    folder = _filled(tmp_path, 20_000)
    database = Database(None, tmp_path)
    database.prepare()
    mover = Mover(folder, database)
    moving = asyncio.create_task(asyncio.to_thread(mover.move))
    await _until(lambda: database.query("SELECT COUNT(*) FROM usage")[0][0] > 0, NICE_SECONDS)
    mover.kill()
    with pytest.raises(LedgerError, match="the next round starts another"):
        await moving
    before = int(database.query("SELECT COUNT(*) FROM usage")[0][0])
    assert before < 20_000
    assert mover.move().rows == 20_000 - before
    assert database.query("SELECT COUNT(*), COUNT(DISTINCT request_id) FROM usage") == [(20_000, 20_000)]
    mover.close()
    database.close()


def test_reason_of_a_failed_round_reaches_the_tower(tmp_path: Path) -> None:
    """A database that cannot be used is the ledger's error, and the process stays for the next round."""
    folder = _filled(tmp_path, 3)
    (tmp_path / "ledger.db").write_bytes(b"this is no database" * 100)
    mover = Mover(folder, Database(None, tmp_path))
    for _ in range(2):
        with pytest.raises(LedgerError, match="not a database"):
            mover.move()
    assert mover.running
    mover.close()


def test_process_is_nice_and_imports_nothing_heavy(tmp_path: Path) -> None:
    """It runs at the lowest priority from its first instruction on, on the core of a tower that is busy."""
    folder = _filled(tmp_path, 5)
    database = Database(None, tmp_path)
    database.prepare()
    mover = Mover(folder, database)
    assert mover.move() == Moved(rows=5)
    assert mover._process is not None
    assert os.getpriority(os.PRIO_PROCESS, mover._process.pid) == 19
    mover.close()
    code = (
        "import sys; from lmtower.ledger.mover import main; main(); "
        "heavy = ('asyncio', 'pydantic', 'ruamel', 'sqlalchemy', 'structlog', 'subprocess', 'secrets', 'logging'); "
        "print([module for module in heavy if module in sys.modules])"
    )
    _filled(tmp_path, 3)
    given = msgspec.json.encode(Place(str(folder), str(tmp_path), None)) + b"\n\n"
    shown = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, check=True).stdout
    assert shown == msgspec.json.encode(Moved(rows=3)) + b"\n[]\n"
    database.close()


def test_process_ends_with_its_tower(tmp_path: Path) -> None:
    """Its input ends when the tower is gone, killed or not."""
    command = [sys.executable, "-m", "lmtower.ledger.mover"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(msgspec.json.encode(Place(str(tmp_path), str(tmp_path), None)) + b"\n")
        process.stdin.close()
        assert process.wait(10) == 0
        assert process.stderr.read() == b""


async def test_tower_that_stops_does_not_wait_for_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for one that goes on nor for one that is about to begin; what is left stays in the journal."""
    monkeypatch.setattr(ledger_module, "DRAIN_SECONDS", 0.02)
    folder = _filled(tmp_path, 20_000)
    ledger = Ledger.open(tmp_path)
    await ledger.start()
    await _until(lambda: ledger._mover.running)
    await ledger.close()
    assert not ledger._mover.running
    assert journal.segments(folder) != []
    assert ledger._mover._process is None
    with pytest.raises(LedgerError, match="ended"):
        ledger._mover.move(lambda: True)
    assert not ledger._mover.running
