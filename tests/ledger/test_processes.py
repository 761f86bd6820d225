"""Several real processes on one data folder, and one that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lmtower.ledger import Ledger, journal

_WRITER = """
import asyncio, sys, time
from pathlib import Path
from lmtower.ledger import Ledger, UsageRecord

async def main(folder, name, count):
    ledger = Ledger.open(Path(folder))
    await ledger.start()
    for number in range(count):
        ledger.record(UsageRecord(request_id=f"{name}-{number}", time=time.time(), client=name, input_tokens=1))
        print(number, flush=True)
        if number % 50 == 49:
            await asyncio.sleep(0.01)
    await ledger.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def _writer(folder: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _WRITER, str(folder), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("after", [1, 700, 4000])
def test_killed_tower_loses_no_finished_request(tmp_path: Path, after: int) -> None:
    """``kill -9`` at any moment, while it writes and drains: every record whose ``record`` returned is there, once."""
    writer = _writer(tmp_path, "tower", 10**9)
    assert writer.stdout is not None
    while int(writer.stdout.readline()) < after:
        pass
    os.kill(writer.pid, signal.SIGKILL)
    told = [int(line) for line in writer.stdout.read().split("\n") if line]
    writer.wait()
    writer.stdout.close()
    finished = max([after, *told]) + 1
    ledger = Ledger.open(tmp_path)
    total = ledger.usage(()).total
    # One more than was told may be there: killed between the write and the print.
    assert total.requests in (finished, finished + 1)
    assert total.input_tokens == total.requests
    assert len(ledger.usage(["session"]).rows) == 1
    ids = {row[0] for row in ledger._database.query("SELECT DISTINCT request_id FROM usage")}
    assert {f"tower-{number}" for number in range(finished)} <= ids
    assert len(ids) == total.requests
    ledger.shut()
    assert journal.segments(tmp_path / "journal") == []


def test_two_towers_and_a_reader_on_one_folder_agree(tmp_path: Path) -> None:
    """Two processes write and drain while a third asks for usage: nothing is lost, nothing is counted twice."""
    writers = [_writer(tmp_path, name, 3000) for name in ("a", "b")]
    reader = Ledger.open(tmp_path)
    seen = 0
    while any(writer.poll() is None for writer in writers):
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        now = reader.usage(()).total.requests
        assert now >= seen
        seen = now
        for writer in writers:
            assert writer.stdout is not None
            for _ in range(500):
                writer.stdout.readline()
    assert [writer.wait() for writer in writers] == [0, 0]
    assert {row.group["client"]: row.requests for row in reader.usage(["client"]).rows} == {"a": 3000, "b": 3000}
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.close()
    reader.shut()
    assert journal.segments(tmp_path / "journal") == []
