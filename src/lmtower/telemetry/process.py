"""The usual ``process_*`` metrics of this process, read from /proc at scrape time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lmtower.telemetry.families import Kind


def samples(proc: Path = Path("/proc")) -> Iterator[tuple[str, Kind, str, float]]:
    """Name, kind, help, value. Empty where there is no /proc (macOS)."""
    try:
        # The command in field 2 may hold spaces; everything after its ")" is plain.
        fields = (proc / "self/stat").read_text().rpartition(")")[2].split()
        boot = next(line for line in (proc / "stat").read_text().splitlines() if line.startswith("btime"))
        descriptors = len(os.listdir(proc / "self/fd"))
    except OSError:
        return
    ticks = os.sysconf("SC_CLK_TCK")
    cpu = (int(fields[11]) + int(fields[12])) / ticks
    started = int(boot.split()[1]) + int(fields[19]) / ticks
    resident = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    yield "process_cpu_seconds", "counter", "User and system CPU time.", cpu
    yield "process_resident_memory_bytes", "gauge", "Resident memory.", resident
    yield "process_start_time_seconds", "gauge", "Start time since the epoch.", started
    yield "process_open_fds", "gauge", "Open file descriptors.", descriptors
