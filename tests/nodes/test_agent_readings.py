"""What the agent reads: /proc and NVML, complete, partial and absent."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lmtower.errors import NodeError
from lmtower.nodes import agent_exporter
from lmtower.nodes.agent_exporter import Readings, WatchdogReading
from lmtower.nodes.agent_gpu import GpuReader, Gpus, owner_of
from lmtower.nodes.agent_memory import read_memory
from tests.nodes.fake_node import GIB, FakeNvml, FakeProc, NVMLError


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    """A DGX Spark with two engines and a stranger on its GPU."""
    fake = FakeProc(tmp_path / "proc")
    fake.process(100, "VLLM::EngineCor", "/system.slice/docker-abc123.scope")
    fake.process(200, "python3")
    return fake


def spark(proc: FakeProc) -> Gpus:
    """Its GPU."""
    return GpuReader(FakeNvml(), proc=proc.path, owners=lambda: {"abc123": "nemotron"}).read()


def samples(page: str) -> dict[str, float]:
    """``name{labels}`` -> value."""
    return {
        sample.name + "".join(f",{value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_memory_is_read_in_bytes(proc: FakeProc) -> None:
    """kB lines become bytes; lines without a unit do no harm."""
    proc.set(available=14 * GIB, swap_free=GIB)
    memory = read_memory(proc.path)
    assert (memory.total_bytes, memory.available_bytes) == (120 * GIB, 14 * GIB)
    assert (memory.swap_total_bytes, memory.swap_free_bytes) == (2 * GIB, GIB)


def test_pressure_is_read_as_shares(proc: FakeProc) -> None:
    """Percentages become shares, microseconds seconds."""
    proc.set(available=GIB, stalled=0.25)
    memory = read_memory(proc.path)
    line = memory.pressure["memory", "some"]
    assert (line.avg10, line.avg60, line.avg300, line.total_seconds) == (0.25, 0.015, 0.0025, 2.5)
    assert memory.stalled == 0.25
    assert ("memory", "full") in memory.pressure


def test_kernel_without_psi_has_no_pressure(tmp_path: Path) -> None:
    """No /proc/pressure: nothing stalls, nothing fails."""
    memory = read_memory(FakeProc(tmp_path / "proc", pressure=False).path)
    assert memory.pressure == {}
    assert memory.stalled == 0.0


def test_machine_without_proc_is_refused(tmp_path: Path) -> None:
    """The agent says what it needs."""
    with pytest.raises(NodeError, match="needs Linux"):
        read_memory(tmp_path / "nothing")


def test_real_proc_can_be_read() -> None:
    """The kernel under this test writes what we expect."""
    memory = read_memory()
    assert 0 < memory.available_bytes <= memory.total_bytes


def test_spark_is_recognised_as_unified_memory(proc: FakeProc) -> None:
    """GB10 does not support the memory question; everything else it answers."""
    gpus = spark(proc)
    (gpu,) = gpus.gpus
    assert gpus.unified
    assert (gpu.name, gpus.driver) == ("NVIDIA GB10", "580.142")
    assert (gpu.memory_total_bytes, gpu.memory_clock_hertz) == (None, None)
    assert (gpu.utilization, gpu.power_watts, gpu.sm_clock_hertz, gpu.temperature_celsius) == (0.83, 41.5, 2.405e9, 61)


def test_card_with_own_memory_is_not_unified(proc: FakeProc) -> None:
    """A discrete GPU says how much it has."""
    nvml = FakeNvml()
    nvml.answers["DeviceGetMemoryInfo"] = SimpleNamespace(total=80 * GIB, used=30 * GIB, free=50 * GIB)
    gpus = GpuReader(nvml, proc=proc.path).read()
    assert not gpus.unified
    assert gpus.gpus[0].memory_used_bytes == 30 * GIB


def test_processes_are_named_by_their_engine(proc: FakeProc) -> None:
    """Container id in the cgroup -> engine; else the program; a process that is gone is unknown."""
    owners = [(process.owner, process.memory_bytes) for process in spark(proc).gpus[0].processes]
    assert owners == [("nemotron", 70 * GIB), ("python3", 5 * GIB), ("unknown", 0)]


def test_driver_that_answers_nothing_is_survived(proc: FakeProc) -> None:
    """Every question may fail."""
    nvml = FakeNvml(answers={})
    (gpu,) = GpuReader(nvml, proc=proc.path).read().gpus
    assert (gpu.name, gpu.utilization, gpu.processes) == ("", None, ())


def test_machine_without_gpu_has_none() -> None:
    """Zero GPUs are fine, and not unified memory."""
    gpus = GpuReader(FakeNvml(count=0)).read()
    assert (gpus.gpus, gpus.unified) == ((), False)


def test_other_errors_are_not_hidden(proc: FakeProc) -> None:
    """Only NVML's own errors mean "not supported"."""
    nvml = FakeNvml()
    nvml.answers["DeviceGetUtilizationRates"] = 7
    with pytest.raises(AttributeError):
        GpuReader(nvml, proc=proc.path).read()
    assert issubclass(NVMLError, Exception)


def test_owner_of_a_program_without_a_name(proc: FakeProc) -> None:
    """An empty comm is unknown, too."""
    proc.process(400, "")
    assert owner_of(400, {}, proc.path) == "unknown"


def readings(proc: FakeProc, **more: object) -> Readings:
    """A full reading of the fake node."""
    return Readings("1.0", read_memory(proc.path), spark(proc), **more)  # type: ignore[arg-type]


def test_page_shows_what_the_node_says(proc: FakeProc) -> None:
    """Memory, reserve, pressure, GPU and watchdog are on the page."""
    watchdog = WatchdogReading(2, {"hold": 3})
    found = samples(agent_exporter.page(readings(proc, reserve_bytes=12 * GIB, watchdog=watchdog)))
    expected = {
        "lmtower_node_memory_available_bytes": 60 * GIB,
        "lmtower_node_memory_reserve_bytes": 12 * GIB,
        "lmtower_node_pressure_ratio,some,memory,avg60": 0.015,
        "lmtower_node_pressure_stalled_seconds_total,some,memory": 2.5,
        "lmtower_node_gpu_utilization_ratio,0": 0.83,
        "lmtower_node_gpu_power_watts,0": 41.5,
        "lmtower_node_gpu_sm_clock_hertz,0": 2.405e9,
        "lmtower_node_gpu_temperature_celsius,0": 61,
        "lmtower_node_gpu_process_memory_bytes,0,nemotron": 70 * GIB,
        "lmtower_node_watchdog_level": 2,
        "lmtower_node_watchdog_actions_total,hold": 3,
    }
    assert {name: found.get(name) for name in expected} == expected


def test_unsupported_values_are_left_out(proc: FakeProc) -> None:
    """Not supported is not zero."""
    page = agent_exporter.page(readings(proc))
    for name in ("gpu_memory_used", "gpu_memory_clock", "memory_reserve", "watchdog", "disk_free"):
        assert f"lmtower_node_{name}" not in page


def test_page_without_gpu_is_only_memory(proc: FakeProc) -> None:
    """A node without a GPU still has a page."""
    page = agent_exporter.page(Readings("1.0", read_memory(proc.path), Gpus()))
    assert "lmtower_node_memory_available_bytes" in page
    assert "gpu" not in page


def test_facts_tell_what_planning_needs(proc: FakeProc) -> None:
    """Total, available, unified, GPUs with their processes."""
    found = agent_exporter.facts("spark", readings(proc, reserve_bytes=12 * GIB))
    assert (found["node"], found["unified"], found["memory_available_bytes"]) == ("spark", True, 60 * GIB)
    assert found["gpus"][0]["processes"][0] == {"pid": 100, "owner": "nemotron", "memory_bytes": 70 * GIB}


@pytest.mark.tools
def test_promtool_accepts_the_page(proc: FakeProc) -> None:
    """The linter of Prometheus has nothing to say."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian: prometheus) is not installed")
    page = agent_exporter.page(readings(proc, reserve_bytes=1, watchdog=WatchdogReading(0, {"hold": 0})))
    done = subprocess.run([promtool, "check", "metrics"], input=page.encode(), capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
