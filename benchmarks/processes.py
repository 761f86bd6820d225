"""Programs under test: started on a core of their own, measured as a whole session, stopped for certain."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """A benchmark cannot run; the message says why and what to do."""


class Process:
    """A program and everything it starts (one session), pinned to ``core``. Output goes to a log file."""

    def __init__(self, argv: Sequence[str], *, core: int, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        self.began = time.monotonic()
        with log.open("wb") as out:
            self.popen = subprocess.Popen(
                ["taskset", "-c", str(core), *argv],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    def _stats(self) -> Iterator[tuple[int, list[str]]]:
        """Pid and the fields of /proc/PID/stat behind the name, of every process of the session."""
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self.popen.pid:
                yield int(entry), fields

    def cpu_seconds(self) -> float:
        """User and system time so far, of processes that still live and of children they waited for."""
        return sum(sum(map(int, fields[11:15])) for _, fields in self._stats()) / TICK

    def rss_bytes(self) -> int:
        """Resident memory; pages that its processes share are counted once (PSS)."""
        total = 0
        for pid, _ in self._stats():
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
        return total

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def settle(self, seconds: float = 30.0) -> bool:
        """Wait until it has nothing to do any more: under 10 % of a core over a fifth of a second."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            before = self.cpu_seconds()
            time.sleep(0.2)
            if self.cpu_seconds() - before < 0.02:
                return True
        return False

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for what is left of the session after five seconds."""
        for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            for pid, _ in tuple(self._stats()):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
            try:
                self.popen.wait(patience)
            except subprocess.TimeoutExpired:
                continue
            if not tuple(self._stats()):
                return

    def tail(self, lines: int = 8) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
