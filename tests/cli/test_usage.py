"""``lmtower usage``: tables, JSON, CSV, periods."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmtower.cli import main
from lmtower.ledger.journal import Journal
from tests.ledger.records import record


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder whose journal holds three requests that no tower has drained yet."""
    monkeypatch.chdir(tmp_path)
    for name in ("LMTOWER_CONFIG", "LMTOWER_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    now = time.time()
    written = Journal(tmp_path / "tower-data" / "journal")
    written.append(record(1, time=now - 60, cached_tokens=25, ttft_seconds=0.25))
    written.append(record(2, time=now - 3600, client="bob", persona="code", output_tokens=1234, end_user="=1+1"))
    written.append(record(3, time=now - 10 * 86_400, client="bob", persona="code", images=2, cost=0.5))
    written.close()
    return tmp_path


def _run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def test_table_shows_rows_and_the_total(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Columns that hold nothing but zeros are left out; records in the journal are included."""
    lines = [" ".join(line.split()) for line in _run(capsys, "usage").splitlines()]
    assert lines == [
        "client persona requests input cached hit rate output TTFT images cost",
        "bob code 2 200 0 0.0% 1,244 - 2 0.5000",
        "alice plan 1 100 25 25.0% 10 0.25 s 0 0.0000",
        "total - 3 300 25 8.3% 1,254 0.25 s 2 0.5000",
    ]


def test_period_and_groups_are_obeyed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--since and --until, as duration or date; any groups."""
    found = json.loads(_run(capsys, "usage", "--by", "client", "--since", "7d", "--format", "json"))
    assert [(row["client"], row["requests"]) for row in found["rows"]] == [("bob", 1), ("alice", 1)]
    found = json.loads(_run(capsys, "usage", "--by", "persona,outcome", "--until", "30min", "--json"))
    assert [(row["persona"], row["outcome"], row["requests"]) for row in found["rows"]] == [("code", "ok", 2)]
    assert found["total"]["input_tokens"] == 200
    day = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 5 * 86_400))
    assert json.loads(_run(capsys, "usage", "--until", day, "--json"))["total"]["requests"] == 1
    assert json.loads(_run(capsys, "usage", "--since", f"{day}T00:00+02:00", "--json"))["total"]["requests"] == 2
    assert "No requests in that time." in _run(capsys, "usage", "--since", "1s")


def test_csv_has_every_sum_and_runs_no_formula(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line per row, no total line; names chosen by end users cannot act in a spreadsheet."""
    rows = list(csv.DictReader(io.StringIO(_run(capsys, "usage", "--by", "end_user", "--format", "csv"))))
    assert [(row["end_user"], row["requests"], row["output_tokens"]) for row in rows] == [
        ("'=1+1", "1", "1234"), ("", "2", "20"),
    ]  # fmt: skip


def test_asking_twice_counts_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reading drains the journal, and reading again changes nothing."""
    assert _run(capsys, "usage") == _run(capsys, "usage")
    assert list((folder / "tower-data" / "journal").iterdir()) == []


def test_unknown_group_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and the group that was meant."""
    assert main(["usage", "--by", "persona,dya"]) == 2
    assert "Did you mean 'day'" in capsys.readouterr().err


def test_terminal_gets_a_table_with_lines(folder: Path) -> None:
    """A person on a terminal sees a drawn table, the total under a rule."""
    import pty

    code = "import sys; from lmtower.cli import main; sys.exit(main(['usage', '--by', 'client']))"
    main_end, other_end = pty.openpty()
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", code], cwd=folder, stdout=other_end, check=True, env=environment)
    os.close(other_end)
    shown = os.read(main_end, 65_536).decode()
    os.close(main_end)
    assert "─" in shown
    assert "total" in shown
    assert "1,254" in shown
