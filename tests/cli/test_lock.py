"""Two ``up`` at once on one data folder: the second is refused with the first one's process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lmtower.cli.lock import at_work, who_works
from lmtower.cli.serving import run
from lmtower.errors import Refused

HOLD = """
import sys
from pathlib import Path
from lmtower.cli.lock import at_work
with at_work(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_one_is_refused_with_the_first_ones_process(tmp_path: Path) -> None:
    """It says what to do; when the first one has gone, however it ended, the folder is free."""
    argv = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        assert who_works(tmp_path) == first.pid
        with pytest.raises(Refused, match=rf"process {first.pid}\).*lmtower down"), at_work(tmp_path):
            pass
        first.kill()
    assert who_works(tmp_path) is None
    with at_work(tmp_path):
        assert (tmp_path / "up.lock").read_text() == str(os.getpid())


def test_nobody_works_on_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """Looking makes nothing."""
    assert who_works(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


def test_start_that_is_interrupted_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    """A script sees that nothing serves; SIGTERM ends a start as Ctrl-C does."""

    async def start() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert run(start) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "stopped before it was ready" in capsys.readouterr().err
