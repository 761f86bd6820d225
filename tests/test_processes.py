"""A pid alone does not name a process: with the time when it began it does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmtower import processes


def test_this_process_runs() -> None:
    """What is written down of a process holds as long as it runs."""
    here = processes.this_process()
    assert here["pid"] == os.getpid()
    assert processes.runs(os.getpid(), str(here["began"]))


def test_another_process_with_the_same_pid_is_not_it() -> None:
    """After a reboot a pid belongs to somebody else."""
    assert not processes.runs(os.getpid(), "an-earlier-boot 4711")
    assert not processes.runs(os.getpid(), "")


def test_ended_process_does_not_run_even_as_a_zombie() -> None:
    """Its parent has not asked yet how it ended."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = processes.identity(child.pid)
    assert began is not None
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not processes.runs(child.pid, began)
    child.wait()
    assert processes.identity(child.pid) is None


def test_elsewhere_ps_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """macOS has no /proc."""
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    assert processes.identity(os.getpid()) == processes.identity(os.getpid())
    assert processes.runs(os.getpid(), str(processes.identity(os.getpid())))
