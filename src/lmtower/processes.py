"""Which process a pid means: pids are given out again, so a file that names one says when that process began, too."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_PROC = Path("/proc")


def identity(pid: int) -> str | None:
    """When a process began, as its system says it; equal only for the same process. None: it does not run.

    Linux: the boot and the clock tick; elsewhere what ``ps`` says, to the second.
    """
    if not (_PROC / "self/stat").exists():
        done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return done.stdout.strip() or None
    try:
        # "pid (any name) state ppid ...": counted from the state, the start time is the 20th field
        fields = (_PROC / str(pid) / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{_boot()} {fields[19]}"


def runs(pid: int, began: str) -> bool:
    """True while the process that had this identity runs; another one with its pid does not count."""
    return pid > 0 and identity(pid) == began


def this_process() -> dict[str, int | str]:
    """``pid`` and ``began`` of this process, for a file that tells others."""
    pid = os.getpid()
    return {"pid": pid, "began": identity(pid) or ""}


def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:  # some sandboxes have none
        return ""
