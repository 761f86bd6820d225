"""What a node says of itself: parsed, merged into facts, and every difference from the tower file told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lmtower.plan.hardware import facts, recognise
from lmtower.plan.measured import Measured, SeenGpu, merged, parse, summary
from tests.plan.shapes import GIB

MEMINFO = "MemTotal:       127600748 kB\nMemFree:        80000000 kB\nMemAvailable:   119537664 kB\n"
SPARK = f"aarch64\n--- lmtower\n{MEMINFO}--- lmtower\nNVIDIA GB10, [N/A], [N/A], [N/A], 12.1, 580.95.05\n"
CARD = "NVIDIA H100 80GB HBM3, 81559, 551, 80000, 9.0, 570.133.20\n"
SERVER = f"x86_64\n--- lmtower\n{MEMINFO}--- lmtower\n{CARD}{CARD}"


def seen(text: str) -> Measured:
    """A look that worked."""
    found = parse(text)
    assert found is not None
    return found


def test_spark_has_one_memory_and_it_is_the_machines() -> None:
    """GB10 prints [N/A] for the GPU's memory; MemTotal and MemAvailable are the truth."""
    look = seen(SPARK)
    assert look.gpus == (SeenGpu("NVIDIA GB10", None, None, 12.1),)
    found, notes = merged(facts("dgx-spark", name="spark"), look, idle=True)
    assert (found.memory_total_bytes, found.memory_available_bytes) == (127600748 * 1024, 119537664 * 1024)
    assert (found.unified, notes) == (True, ())
    assert summary("spark", look, idle=True) == "spark: NVIDIA GB10, 114.0 of 121.7 GiB free, aarch64, driver 580.95.05"


def test_card_counts_what_cuda_counts() -> None:
    """NVML's total holds what the driver keeps; CUDA's, of which vLLM's utilisation is a share, does not."""
    found, notes = merged(facts("2x h100", name="gpu"), seen(SERVER), idle=True)
    assert found.memory_total_bytes / GIB == pytest.approx(79.10, abs=0.05)
    assert (found.memory_available_bytes, found.gpus, notes) == (80000 * 1024**2, 2, ())


def test_free_memory_beside_running_engines_is_not_taken_for_the_nodes() -> None:
    """What would be free without our engines is not known while they run."""
    found, _ = merged(facts("2x h100", name="gpu"), seen(SERVER), idle=False)
    assert found.memory_available_bytes == found.memory_total_bytes


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ("4x h100", "hardware says 4x h100, but 2 GPUs are there: planned with 2"),
        ("h100", "2 GPUs are there, 1 used. Write hardware: 2x h100 to use all"),
        ("2x h200", "there is NVIDIA H100 80GB HBM3: planned as h100. Write hardware: h100"),
        ("dgx-spark", "there is NVIDIA H100 80GB HBM3: planned as h100"),
    ],
)
def test_other_hardware_than_declared_is_told_and_planned(declared: str, said: str) -> None:
    """The node is right; the sentence says what to write."""
    found, notes = merged(facts(declared, name="gpu"), seen(SERVER), idle=True)
    assert any(said in note for note in notes), notes
    assert (found.hardware, found.unified) == ("h100", False)
    assert found.gpus <= 2


def test_card_of_another_size_is_told() -> None:
    """The same name is sold with other memories."""
    large = replace(seen(SERVER), gpus=(SeenGpu("NVIDIA H100 NVL", 93 * GIB, 92 * GIB, 9.0),))
    found, notes = merged(facts("h100", name="gpu"), large, idle=True)
    assert "hardware says h100 (79.1 GiB), but 93.0 GiB are there" in notes[0]
    assert found.memory_total_bytes == 93 * GIB


def test_size_in_the_tower_file_stays_a_limit() -> None:
    """``hardware: 24 GiB`` on a larger card: more is not taken."""
    found, notes = merged(facts("24 GiB", name="gpu"), seen(SERVER.replace(CARD, "", 1)), idle=True)
    assert (found.memory_total_bytes, found.memory_available_bytes, notes) == (24 * GIB, 24 * GIB, ())


def test_node_without_a_gpu_is_told() -> None:
    """No driver: the catalogue's plan stands, and the owner knows."""
    found, notes = merged(facts("h100", name="gpu"), seen(f"x86_64\n--- lmtower\n{MEMINFO}--- lmtower\n"), idle=True)
    assert found == facts("h100", name="gpu")
    assert "nvidia-smi finds no GPU there" in notes[0]


def test_machine_without_cuda_is_measured_by_its_memory() -> None:
    """A Strix Halo has no nvidia-smi, and nothing is wrong with that."""
    found, notes = merged(facts("strix-halo", name="box"), seen(f"x\n--- lmtower\n{MEMINFO}--- lmtower\n"), idle=True)
    assert (found.memory_available_bytes, notes) == (119537664 * 1024, ())


@pytest.mark.parametrize("text", ["", "bash: nvidia-smi: not found", "aarch64\n--- lmtower\n--- lmtower\n"])
def test_answer_that_is_none_is_unknown(text: str) -> None:
    """A node that was not reached has not been measured."""
    assert parse(text) is None


@pytest.mark.parametrize(
    ("name", "memory", "chip"),
    [
        ("NVIDIA GB10", None, "dgx-spark"),
        ("NVIDIA L40S", 44 * GIB, "l40s"),
        ("NVIDIA L4", 22 * GIB, "l4"),
        ("NVIDIA A100-SXM4-40GB", 39 * GIB, "a100-40"),
        ("NVIDIA A100-SXM4-80GB", 79 * GIB, "a100"),
        ("NVIDIA GeForce RTX 5090", 31 * GIB, "rtx-5090"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 95 * GIB, "rtx-pro-6000"),
        ("NVIDIA GH200 480GB", 95 * GIB, None),
        ("Tesla V100", 32 * GIB, None),
    ],
)
def test_chip_is_recognised_by_the_drivers_name(name: str, memory: int | None, chip: str | None) -> None:
    """As nvidia-smi spells them."""
    found = recognise(name, memory)
    assert (found and found.name) == chip
