"""What NVML says about a node's GPUs. Every question may be "not supported", and there may be no GPU at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# GB10 answers NOT_SUPPORTED to memory, memory clock and power limit; per-process memory works there.


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """Memory that one process holds on a GPU. ``owner`` is the engine's name if it is known, else the program's."""

    pid: int
    owner: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; None: the driver does not say. ``memory_total_bytes`` is None on unified memory."""

    index: int
    name: str
    uuid: str = ""
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    utilization: float | None = None
    sm_clock_hertz: float | None = None
    memory_clock_hertz: float | None = None
    power_watts: float | None = None
    temperature_celsius: float | None = None
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True, slots=True)
class Gpus:
    """All GPUs of the node."""

    gpus: tuple[Gpu, ...] = ()
    driver: str = ""

    @property
    def unified(self) -> bool:
        """True where GPU and CPU share their memory: there is a GPU, and it has none of its own."""
        return bool(self.gpus) and all(gpu.memory_total_bytes is None for gpu in self.gpus)


class GpuReader:
    """Asks NVML. ``nvml`` is the ``pynvml`` module or something like it; ``owners`` maps container ids to engines."""

    def __init__(
        self, nvml: Any, *, proc: Path = Path("/proc"), owners: Callable[[], Mapping[str, str]] = dict
    ) -> None:
        self._nvml = nvml
        self._proc = proc
        self._owners = owners

    @classmethod
    def of_this_machine(cls, owners: Callable[[], Mapping[str, str]] = dict) -> GpuReader | None:
        """A reader, or None without an NVIDIA driver."""
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return None
        return cls(pynvml, owners=owners)

    def read(self) -> Gpus:
        """Every GPU, as far as the driver answers."""
        nvml = self._nvml
        count = self._ask(nvml.nvmlDeviceGetCount) or 0
        driver = self._ask(nvml.nvmlSystemGetDriverVersion)
        return Gpus(tuple(self._gpu(index) for index in range(count)), _text(driver))

    def _gpu(self, index: int) -> Gpu:
        nvml, ask = self._nvml, self._ask
        handle = ask(nvml.nvmlDeviceGetHandleByIndex, index)
        memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
        utilization = ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        milliwatts = ask(nvml.nvmlDeviceGetPowerUsage, handle)
        megahertz = ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM)
        memory_megahertz = ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM)
        return Gpu(
            index=index,
            name=_text(ask(nvml.nvmlDeviceGetName, handle)),
            uuid=_text(ask(nvml.nvmlDeviceGetUUID, handle)),
            memory_total_bytes=memory.total if memory else None,
            memory_used_bytes=memory.used if memory else None,
            utilization=utilization.gpu / 100 if utilization else None,
            sm_clock_hertz=None if megahertz is None else megahertz * 1e6,
            memory_clock_hertz=None if memory_megahertz is None else memory_megahertz * 1e6,
            power_watts=None if milliwatts is None else milliwatts / 1000,
            temperature_celsius=ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            processes=self._processes(handle),
        )

    def _processes(self, handle: Any) -> tuple[GpuProcess, ...]:
        running = self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()
        owners = self._owners() if running else {}
        return tuple(
            GpuProcess(process.pid, owner_of(process.pid, owners, self._proc), process.usedGpuMemory or 0)
            for process in running
        )

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        """The answer, or None: NOT_SUPPORTED, no permission, a GPU that fell off the bus."""
        try:
            return question(*arguments)
        except self._nvml.NVMLError:
            return None


def owner_of(pid: int, owners: Mapping[str, str], proc: Path = Path("/proc")) -> str:
    """The engine whose container the process is in, else the name of its program, else ``unknown``."""
    try:
        cgroup = (proc / str(pid) / "cgroup").read_text()
        for container, engine in owners.items():
            if container in cgroup:
                return engine
        return (proc / str(pid) / "comm").read_text().strip() or "unknown"
    except OSError:
        return "unknown"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
