"""A node's readings as Prometheus text and as the facts that ``lmtower`` plans with. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmtower.nodes.agent_gpu import Gpu, Gpus
from lmtower.nodes.agent_memory import Memory

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Labels = Mapping[str, str]
Sample = tuple[Labels, float | None]


@dataclass(frozen=True, slots=True)
class WatchdogReading:
    """What the watchdog did so far. ``actions`` counts holds, releases and stops."""

    level: int
    actions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Readings:
    """Everything that the agent knows at one moment."""

    version: str
    memory: Memory
    gpus: Gpus
    reserve_bytes: int | None = None
    disk_free_bytes: int | None = None
    watchdog: WatchdogReading | None = None


def facts(node: str, readings: Readings) -> dict[str, Any]:
    """What ``GET /facts`` answers."""
    memory, gpus = readings.memory, readings.gpus
    return {
        "node": node,
        "version": readings.version,
        "unified": gpus.unified,
        "memory_total_bytes": memory.total_bytes,
        "memory_available_bytes": memory.available_bytes,
        "swap_total_bytes": memory.swap_total_bytes,
        "swap_free_bytes": memory.swap_free_bytes,
        "reserve_bytes": readings.reserve_bytes,
        "disk_free_bytes": readings.disk_free_bytes,
        "driver": gpus.driver,
        "gpus": [_gpu_facts(gpu) for gpu in gpus.gpus],
    }


def _gpu_facts(gpu: Gpu) -> dict[str, Any]:
    return {
        "index": gpu.index,
        "name": gpu.name,
        "uuid": gpu.uuid,
        "memory_total_bytes": gpu.memory_total_bytes,
        "memory_used_bytes": gpu.memory_used_bytes,
        "processes": [
            {"pid": process.pid, "owner": process.owner, "memory_bytes": process.memory_bytes}
            for process in gpu.processes
        ],
    }


def page(readings: Readings) -> str:
    """What ``GET /metrics`` answers. A value that the machine does not tell is left out, never shown as zero."""
    parts = [
        _family("agent_info", "gauge", "Version of the agent.", [({"version": readings.version}, 1)]),
        *_memory(readings),
        *_gpus(readings.gpus),
    ]
    watchdog = readings.watchdog
    if watchdog is not None:
        level = "0 calm, 1 holds batch work, 2 holds default work too, 3 stops an engine."
        parts.append(_family("watchdog_level", "gauge", level, [({}, watchdog.level)]))
        counts: list[Sample] = [({"action": action}, count) for action, count in sorted(watchdog.actions.items())]
        parts.append(_family("watchdog_actions", "counter", "What the watchdog did.", counts))
    return "".join(parts)


def _memory(readings: Readings) -> Iterable[str]:
    memory = readings.memory
    for name, help, value in (
        ("memory_total_bytes", "Memory of the node.", memory.total_bytes),
        ("memory_available_bytes", "MemAvailable: what can still be taken.", memory.available_bytes),
        ("memory_reserve_bytes", "Memory that the tower file reserves.", readings.reserve_bytes),
        ("swap_total_bytes", "Swap space.", memory.swap_total_bytes),
        ("swap_free_bytes", "Free swap space.", memory.swap_free_bytes),
        ("disk_free_bytes", "Free space where model weights are kept.", readings.disk_free_bytes),
    ):
        yield _family(name, "gauge", help, [({}, value)])
    ratios: list[Sample] = []
    stalled: list[Sample] = []
    for (resource, kind), line in memory.pressure.items():
        labels = {"resource": resource, "kind": kind}
        for window, share in (("avg10", line.avg10), ("avg60", line.avg60), ("avg300", line.avg300)):
            ratios.append((labels | {"window": window}, share))
        stalled.append((labels, line.total_seconds))
    yield _family("pressure_ratio", "gauge", "PSI: share of time in which tasks were stalled.", ratios)
    yield _family("pressure_stalled_seconds", "counter", "PSI: time in which tasks were stalled.", stalled)


def _gpus(gpus: Gpus) -> Iterable[str]:
    info = [
        ({"gpu": str(gpu.index), "name": gpu.name, "uuid": gpu.uuid, "driver": gpus.driver}, 1.0) for gpu in gpus.gpus
    ]
    yield _family("gpu_info", "gauge", "GPUs of the node.", info)
    for name, help, read in (
        ("gpu_memory_total_bytes", "Memory of the GPU itself.", "memory_total_bytes"),
        ("gpu_memory_used_bytes", "Used memory of the GPU itself.", "memory_used_bytes"),
        ("gpu_utilization_ratio", "Share of time in which a kernel ran.", "utilization"),
        ("gpu_sm_clock_hertz", "Clock of the compute units.", "sm_clock_hertz"),
        ("gpu_memory_clock_hertz", "Clock of the memory.", "memory_clock_hertz"),
        ("gpu_power_watts", "Electrical power.", "power_watts"),
        ("gpu_temperature_celsius", "Temperature of the core.", "temperature_celsius"),
    ):
        yield _family(name, "gauge", help, [({"gpu": str(gpu.index)}, getattr(gpu, read)) for gpu in gpus.gpus])
    held: dict[tuple[str, str], int] = {}
    for gpu in gpus.gpus:
        for process in gpu.processes:
            key = str(gpu.index), process.owner
            held[key] = held.get(key, 0) + process.memory_bytes
    rows: list[Sample] = [({"gpu": gpu, "process": owner}, size) for (gpu, owner), size in held.items()]
    yield _family("gpu_process_memory_bytes", "gauge", "GPU memory by engine or program.", rows)


def _family(name: str, kind: str, help: str, rows: Iterable[Sample]) -> str:
    full = f"lmtower_node_{name}" + ("_total" if kind == "counter" else "")
    lines = [f"{full}{_labels(labels)} {value}\n" for labels, value in rows if value is not None]
    return f"# HELP {full} {help}\n# TYPE {full} {kind}\n{''.join(lines)}" if lines else ""


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    escapes = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    return "{" + ",".join(f'{name}="{value.translate(escapes)}"' for name, value in labels.items()) + "}"
