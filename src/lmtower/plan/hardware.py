"""The hardware catalogue: memory, bandwidth and number formats of the boxes people own, with sources.

A node's ``hardware:`` is a name of the catalogue (``dgx-spark``), several of one (``2x h100``), or a plain size
(``24 GiB``) of which only the memory is known.
"""

from __future__ import annotations

import difflib
import re
from functools import cache
from importlib.resources import files

import msgspec

from lmtower.config.units import parse_size
from lmtower.errors import PlanError
from lmtower.plan.types import NodeFacts

_GIB = 1024**3
_SEVERAL = re.compile(r"^\s*(\d{1,3})\s*[xX×*]\s*(.+)$")


class Hardware(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One chip. ``memory_gib`` is what CUDA reports as total, ``reserve_gib`` what the GPU may not map of it."""

    name: str
    title: str
    memory_gib: float
    bandwidth: float
    unified: bool
    source: str
    supports: tuple[str, ...] = ("bf16",)
    capability: str = ""
    batch_tokens: int = 2048
    aliases: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ("vllm", "llamacpp")
    reserve_gib: float | None = None
    boot_free_gib: tuple[float, float] | None = None
    """What is free after boot, least and most, in reports."""

    @property
    def memory_bytes(self) -> int:
        """Total in bytes."""
        return int(self.memory_gib * _GIB)


@cache
def catalogue() -> tuple[Hardware, ...]:
    """All entries, in the order of the file."""
    from ruamel.yaml import YAML

    text = files("lmtower.plan").joinpath("data", "hardware.yaml").read_text("utf-8")
    return tuple(msgspec.convert(YAML(typ="safe").load(text), list[Hardware]))


def find(name: str) -> Hardware | None:
    """The chip of that name or alias, without regard to case; None when there is none."""
    wanted = name.strip().lower().replace(" ", "-").replace("_", "-")
    return next((chip for chip in catalogue() if wanted == chip.name or wanted in chip.aliases), None)


def recognise(gpu: str, memory_bytes: int | None) -> Hardware | None:
    """The chip whose name a driver gave (``NVIDIA H100 80GB HBM3``). Of several, the one nearest in memory."""
    words = f"-{gpu.strip().lower().replace(' ', '-')}-"
    lengths = {
        chip.name: len(name) for chip in catalogue() for name in (chip.name, *chip.aliases) if f"-{name}-" in words
    }
    if not lengths:
        return None
    best = max(lengths, key=lambda name: lengths[name])
    alike = [chip for chip in catalogue() if chip.name == best or chip.name.startswith(f"{best}-")]
    return min(alike, key=lambda chip: abs(chip.memory_bytes - (memory_bytes or chip.memory_bytes)))


def gpus_of(hardware: str | None) -> int:
    """GPUs that a node's ``hardware`` text names: 2 for ``2x h100``, else 1."""
    several = _SEVERAL.match(hardware or "")
    return int(several[1]) if several else 1


def facts(hardware: str, *, name: str = "node", reserve_bytes: int | None = None) -> NodeFacts:
    """Facts of a node from its ``hardware`` text. Raises PlanError with the nearest name."""
    several = _SEVERAL.match(hardware)
    count, chip_name = (int(several[1]), several[2]) if several else (1, hardware)
    if count < 1:
        raise PlanError(f"hardware: {hardware!r} has no GPU", field="hardware")
    chip = find(chip_name)
    if chip is not None:
        return _facts(chip, name, count, reserve_bytes)
    try:
        size = parse_size(chip_name)
    except ValueError:
        size = 0
    if size <= 0:
        raise PlanError(
            f"hardware: {hardware!r} is neither a chip of the catalogue nor a size such as 24 GiB. "
            f"{_nearest(chip_name)}",
            field="hardware",
        )
    return NodeFacts(
        name=name,
        memory_total_bytes=size,
        memory_available_bytes=size,
        gpus=count,
        hardware=hardware,
        reserve_bytes=reserve_bytes,
        supports=frozenset({"bf16", "fp8"}),
    )


def _facts(chip: Hardware, name: str, count: int, reserve_bytes: int | None) -> NodeFacts:
    boot = chip.boot_free_gib
    if reserve_bytes is None and chip.reserve_gib is not None:
        reserve_bytes = int(chip.reserve_gib * _GIB)
    return NodeFacts(
        name=name,
        memory_total_bytes=chip.memory_bytes,
        memory_available_bytes=chip.memory_bytes,
        unified=chip.unified,
        bandwidth_bytes_per_second=chip.bandwidth * 1e9,
        supports=frozenset(chip.supports),
        gpus=count,
        hardware=chip.name,
        reserve_bytes=reserve_bytes,
        runtimes=frozenset(chip.runtimes),
        capability=float(chip.capability) if chip.capability else 0.0,
        boot_free_bytes=(int(boot[0] * _GIB), int(boot[1] * _GIB)) if boot else None,
        default_batch_tokens=chip.batch_tokens,
    )


def _nearest(name: str) -> str:
    names = [chip.name for chip in catalogue()] + [alias for chip in catalogue() for alias in chip.aliases]
    close = difflib.get_close_matches(name.lower(), names, n=1)
    return f"Did you mean {close[0]!r}?" if close else "`lmtower fit --hardware list` prints all."
