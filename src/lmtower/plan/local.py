"""Facts of the machine that lmtower itself runs on: its memory, for engines that run on the CPU here."""

from __future__ import annotations

from pathlib import Path

from lmtower.plan.types import NodeFacts

_GIB = 1024**3


def this_machine(name: str, reserve_bytes: int | None = None, meminfo: Path = Path("/proc/meminfo")) -> NodeFacts:
    """Memory from /proc/meminfo, or from sysconf where there is none (macOS). The reserve is small here."""
    import os

    total, available = _meminfo(meminfo)
    if total == 0:
        total = available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    reserve = reserve_bytes if reserve_bytes is not None else min(2 * _GIB, total // 8)
    return NodeFacts(
        name=name, memory_total_bytes=total, memory_available_bytes=available, unified=True, reserve_bytes=reserve
    )


def _meminfo(path: Path) -> tuple[int, int]:
    """(MemTotal, MemAvailable) in bytes; zeros when the file is not there."""
    if not path.is_file():
        return 0, 0
    values = {}
    for line in path.read_text("ascii", errors="replace").splitlines():
        name, _, rest = line.partition(":")
        values[name] = int(rest.split()[0]) * 1024 if rest.split() and rest.split()[0].isdigit() else 0
    return values.get("MemTotal", 0), values.get("MemAvailable", values.get("MemFree", 0))
