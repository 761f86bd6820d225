"""A node made of files and answers: a fake /proc and a fake NVML."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

GIB = 1024**3


class FakeProc:
    """A /proc with memory, pressure and processes."""

    def __init__(self, path: Path, *, total: int = 120 * GIB, pressure: bool = True) -> None:
        self.path = path
        self.total = total
        self._has_pressure = pressure
        self.set(available=60 * GIB)

    def set(self, *, available: int, stalled: float = 0.0, swap_free: int = 0) -> None:
        """Change what the node says. ``stalled`` is a share."""
        self.path.mkdir(exist_ok=True)
        lines = {"MemTotal": self.total, "MemFree": available // 2, "MemAvailable": available, "SwapFree": swap_free}
        text = "".join(f"{name}:{size // 1024:>14} kB\n" for name, size in {**lines, "SwapTotal": 2 * GIB}.items())
        (self.path / "meminfo").write_text(text + "HugePages_Total:       0\n")
        if self._has_pressure:
            (self.path / "pressure").mkdir(exist_ok=True)
            minute = stalled * 100 if stalled >= 0.4 else 1.5
            some = f"some avg10={stalled * 100:.2f} avg60={minute:.2f} avg300=0.25 total=2500000\n"
            (self.path / "pressure/memory").write_text(some + "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
            (self.path / "pressure/cpu").write_text("some avg10=3.00 avg60=2.00 avg300=1.00 total=9000000\n")

    def process(self, pid: int, comm: str, cgroup: str = "/user.slice") -> None:
        """Add a process."""
        (self.path / str(pid)).mkdir()
        (self.path / str(pid) / "comm").write_text(comm + "\n")
        (self.path / str(pid) / "cgroup").write_text(f"0::{cgroup}\n")


class NVMLError(Exception):
    """As pynvml's."""


@dataclass
class FakeNvml:
    """Looks like ``pynvml``. A missing answer is NOT_SUPPORTED. Defaults are those of a DGX Spark."""

    answers: dict[str, Any] = field(
        default_factory=lambda: {
            "DeviceGetName": b"NVIDIA GB10",
            "DeviceGetUUID": "GPU-1",
            "DeviceGetUtilizationRates": SimpleNamespace(gpu=83, memory=0),
            "DeviceGetPowerUsage": 41_500,
            "DeviceGetClockInfo": 2_405,
            "DeviceGetTemperature": 61,
            "DeviceGetComputeRunningProcesses": [
                SimpleNamespace(pid=100, usedGpuMemory=70 * GIB),
                SimpleNamespace(pid=200, usedGpuMemory=5 * GIB),
                SimpleNamespace(pid=300, usedGpuMemory=None),
            ],
        }
    )
    count: int = 1

    NVMLError = NVMLError
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_TEMPERATURE_GPU = 0

    def nvmlDeviceGetCount(self) -> int:
        """GPUs."""
        return self.count

    def nvmlSystemGetDriverVersion(self) -> str:
        """Driver."""
        return "580.142"

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        """Handle."""
        return index

    def __getattr__(self, name: str) -> Any:
        def answer(*arguments: Any) -> Any:
            asked = name.removeprefix("nvml")
            if asked not in self.answers or (asked == "DeviceGetClockInfo" and arguments[1] == self.NVML_CLOCK_MEM):
                raise NVMLError("NOT_SUPPORTED")
            return self.answers[asked]

        return answer
