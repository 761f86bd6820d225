"""What a node said of itself, beside what the tower file says of it: parsed and merged into facts. Pure.

A plan made from the catalogue is a guess: one DGX Spark boots with 116 GiB free, another with 101, and a node may hold
other GPUs than its owner wrote down. What was measured wins over what was declared, and every difference is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lmtower.plan import hardware
from lmtower.plan.types import NodeFacts

_GIB = 1024**3
_MIB = 1024**2
_GPU_FIELDS = "name,memory.total,memory.reserved,memory.free,compute_cap,driver_version"
_SPLIT = "--- lmtower"
COMMAND = (
    f"uname -m; echo '{_SPLIT}'; cat /proc/meminfo; echo '{_SPLIT}'; "
    f"nvidia-smi --query-gpu={_GPU_FIELDS} --format=csv,noheader,nounits 2>/dev/null; true"
)
"""For a POSIX shell on the node; ``parse`` reads what it prints."""


@dataclass(frozen=True, slots=True)
class SeenGpu:
    """One GPU. ``total_bytes`` is what CUDA reports; None where GPU and CPU share their memory (GB10)."""

    name: str
    total_bytes: int | None
    free_bytes: int | None
    capability: float


@dataclass(frozen=True, slots=True)
class Measured:
    """One look at a node. ``machine`` is the processor as ``uname -m`` names it."""

    machine: str
    memory_total_bytes: int
    memory_available_bytes: int
    gpus: tuple[SeenGpu, ...] = ()
    driver: str = ""

    @property
    def free_bytes(self) -> int:
        """Free memory of the fullest GPU, or of the machine where there is no other memory."""
        free = [gpu.free_bytes for gpu in self.gpus if gpu.free_bytes is not None]
        return min(free) if free else self.memory_available_bytes


def parse(text: str) -> Measured | None:
    """The output of ``COMMAND``; None when it is none."""
    parts = text.split(_SPLIT)
    if len(parts) != 3:
        return None
    machine, meminfo, cards = parts
    sizes = {}
    for line in meminfo.splitlines():
        name, _, rest = line.partition(":")
        if rest.split() and rest.split()[0].isdigit():
            sizes[name.strip()] = int(rest.split()[0]) * 1024
    if "MemTotal" not in sizes:
        return None
    rows = [[field.strip() for field in line.rsplit(",", 5)] for line in cards.splitlines()]
    rows = [row for row in rows if len(row) == 6]
    return Measured(
        machine.strip(),
        sizes["MemTotal"],
        sizes.get("MemAvailable", sizes.get("MemFree", 0)),
        tuple(map(_gpu, rows)),
        rows[0][5] if rows else "",
    )


def _gpu(row: Sequence[str]) -> SeenGpu:
    name, total, reserved, free, capability, _ = row
    # NVML counts what the driver keeps for itself; CUDA's total, of which vLLM's utilisation is a share, does not
    usable = None if not total.isdigit() else int(total) - (int(reserved) if reserved.isdigit() else 0)
    return SeenGpu(
        name,
        None if usable is None else usable * _MIB,
        int(free) * _MIB if free.isdigit() else None,
        float(capability) if capability.replace(".", "", 1).isdigit() else 0.0,
    )


def merged(declared: NodeFacts, seen: Measured, *, idle: bool) -> tuple[NodeFacts, tuple[str, ...]]:
    """Facts to plan with, and what differs from the tower file, in sentences.

    ``idle`` is False when engines of ours ran during the look: what would be free without them is not known then.
    """
    label = f"node {declared.name!r}"
    written = f"{declared.gpus}x {declared.hardware}" if declared.gpus > 1 else str(declared.hardware)
    if not seen.gpus:
        return _without_cards(declared, seen, label, written, idle=idle)
    notes = []
    known = declared
    chip = hardware.recognise(seen.gpus[0].name, seen.gpus[0].total_bytes)
    if hardware.find(declared.hardware or "") is not None and chip is not None and chip.name != declared.hardware:
        notes.append(
            f"{label}: hardware says {written}, but there is {seen.gpus[0].name}: planned as {chip.name}. "
            f"Write hardware: {chip.name}"
        )
        known = hardware.facts(chip.name, name=declared.name, reserve_bytes=declared.reserve_bytes)
    gpus = min(declared.gpus, len(seen.gpus))
    if len(seen.gpus) < declared.gpus:
        notes.append(f"{label}: hardware says {written}, but {_gpus(len(seen.gpus))} there: planned with {gpus}")
    elif len(seen.gpus) > declared.gpus:
        more = f"{len(seen.gpus)}x {known.hardware}"
        notes.append(f"{label}: {_gpus(len(seen.gpus))} there, {gpus} used. Write hardware: {more} to use all")
    total, free = _memory(known, seen)
    if known is declared and abs(total - known.memory_total_bytes) > 0.03 * known.memory_total_bytes:
        notes.append(
            f"{label}: hardware says {written} ({known.memory_total_bytes / _GIB:.1f} GiB), but "
            f"{total / _GIB:.1f} GiB are there: planned with what is there"
        )
    facts = replace(
        known,
        gpus=gpus,
        memory_total_bytes=total,
        memory_available_bytes=min(total, free) if idle else total,
        capability=seen.gpus[0].capability or known.capability,
    )
    return facts, tuple(notes)


def _without_cards(
    declared: NodeFacts, seen: Measured, label: str, written: str, *, idle: bool
) -> tuple[NodeFacts, tuple[str, ...]]:
    if declared.unified and not declared.capability:  # no CUDA there, so nvidia-smi has nothing to say
        total = min(declared.memory_total_bytes, seen.memory_total_bytes)
        free = min(total, seen.memory_available_bytes) if idle else total
        return replace(declared, memory_total_bytes=total, memory_available_bytes=free), ()
    note = (
        f"{label}: hardware says {written}, but nvidia-smi finds no GPU there: planned from the catalogue. Install the "
        "NVIDIA driver, or write hardware: cpu"
    )
    return declared, (note,)


def _memory(known: NodeFacts, seen: Measured) -> tuple[int, int]:
    """(total, free) of one GPU; a plain size in the tower file is a limit."""
    cards = [gpu for gpu in seen.gpus if gpu.total_bytes is not None]
    if not cards:
        total, free = seen.memory_total_bytes, seen.memory_available_bytes
    else:
        total = min(gpu.total_bytes or 0 for gpu in cards)
        free = min(total if gpu.free_bytes is None else gpu.free_bytes for gpu in cards)
    if hardware.find(known.hardware or "") is None:
        total = min(total, known.memory_total_bytes)
    return total, free


def _gpus(count: int) -> str:
    return "1 GPU is" if count == 1 else f"{count} GPUs are"


def summary(name: str, seen: Measured, *, idle: bool) -> str:
    """``spark: NVIDIA GB10, 114.2 of 121.7 GiB free, aarch64, driver 580.95``."""
    cards = [gpu for gpu in seen.gpus if gpu.total_bytes is not None]
    total = cards[0].total_bytes if cards else seen.memory_total_bytes
    free = cards[0].free_bytes if cards else seen.memory_available_bytes
    memory = f"{(total or 0) / _GIB:.1f} GiB"
    if idle and free is not None:
        memory = f"{free / _GIB:.1f} of {memory} free"
    several = f"{len(seen.gpus)} × " if len(seen.gpus) > 1 else ""
    gpu = f"{several}{seen.gpus[0].name}" if seen.gpus else "no GPU"
    parts = [gpu, memory, seen.machine, f"driver {seen.driver}" if seen.driver else ""]
    return f"{name}: {', '.join(filter(None, parts))}"
