"""What /proc says about a node's memory: MemAvailable, swap, pressure (PSI)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lmtower.errors import NodeError

RESOURCES = ("cpu", "memory", "io")


@dataclass(frozen=True, slots=True)
class Pressure:
    """One line of /proc/pressure/*: shares of time in which tasks were stalled, and the total of stalled seconds."""

    avg10: float
    avg60: float
    avg300: float
    total_seconds: float


@dataclass(frozen=True, slots=True)
class Memory:
    """A node's memory at one moment, in bytes. ``pressure`` is by (resource, kind); empty on kernels without PSI."""

    total_bytes: int
    available_bytes: int
    swap_total_bytes: int
    swap_free_bytes: int
    pressure: Mapping[tuple[str, str], Pressure] = field(default_factory=dict)

    @property
    def stalled(self) -> float:
        """Share of the last ten seconds in which some task waited for memory."""
        line = self.pressure.get(("memory", "some"))
        return line.avg10 if line else 0.0


def read_memory(proc: Path = Path("/proc")) -> Memory:
    """The node's memory now. Raises NodeError where there is no /proc/meminfo."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError as exc:
        raise NodeError(f"{proc}/meminfo cannot be read ({exc.strerror}): the node agent needs Linux.") from exc
    # "MemAvailable:   91234567 kB"
    values = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines) if rest}
    return Memory(
        total_bytes=values["MemTotal"],
        # MemAvailable has been there since Linux 3.14; the sum is what older kernels can say
        available_bytes=values.get("MemAvailable", values["MemFree"] + values.get("Cached", 0)),
        swap_total_bytes=values.get("SwapTotal", 0),
        swap_free_bytes=values.get("SwapFree", 0),
        pressure=_pressure(proc),
    )


def _pressure(proc: Path) -> dict[tuple[str, str], Pressure]:
    found = {}
    for resource in RESOURCES:
        try:
            lines = (proc / "pressure" / resource).read_text().splitlines()
        except OSError:  # PSI is off (psi=0) or not built in
            continue
        for line in lines:
            # "some avg10=0.00 avg60=0.00 avg300=0.00 total=0": percentages, and microseconds
            kind, *pairs = line.split()
            numbers = dict(pair.split("=") for pair in pairs)
            found[resource, kind] = Pressure(
                avg10=float(numbers["avg10"]) / 100,
                avg60=float(numbers["avg60"]) / 100,
                avg300=float(numbers["avg300"]) / 100,
                total_seconds=int(numbers["total"]) / 1e6,
            )
    return found
