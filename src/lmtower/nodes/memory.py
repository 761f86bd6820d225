"""Memory of a node: read it, and wait until it has settled; and one look at everything that a plan needs to know.

On unified memory and on machines without a GPU that is MemAvailable; a card is asked through ``nvidia-smi``.
After a container stops, a GB10 gives its memory back over a minute, and a start that measures in between plans with
wrong numbers: so memory is polled until it stands still.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from lmtower.nodes.reach import output
from lmtower.plan.measured import COMMAND, Measured, parse

MemoryProbe = Callable[[], Awaitable[int | None]]
"""Free bytes now; None when the node cannot tell."""

_MEMINFO = "/proc/meminfo"
_CARD = ("nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits")
_STILL_BYTES = 256 * 1024**2
_SAMPLES = 4
_LOOK_SECONDS = 1.0
_STILL_LOOKS = 2
_MOST_LOOKS = 90
_RISING_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Settled:
    """``still`` is False when memory kept moving until the time was up."""

    available_bytes: int | None
    seconds: float
    still: bool


def probe_of(address: str, *, card: bool, devices: tuple[int, ...] = ()) -> MemoryProbe:
    """The probe of an engine's place: ``card`` for GPUs with memory of their own, else the machine's memory."""

    async def probe() -> int | None:
        text = await output(address, _CARD if card else ("cat", _MEMINFO))
        return free_on_card(text, devices) if card else mem_available(text)

    return probe


def mem_available(meminfo: str) -> int | None:
    """MemAvailable in bytes from the text of /proc/meminfo."""
    for line in meminfo.splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def free_on_card(csv: str, devices: tuple[int, ...] = ()) -> int | None:
    """Free bytes of the fullest of these GPUs, or of the emptiest of all. None on ``[N/A]`` (GB10 says so)."""
    values = [int(line) if line.strip().isdigit() else None for line in csv.splitlines() if line.strip()]
    known = [value for value in values if value is not None]
    if not devices:
        return max(known) * 1024**2 if known else None
    chosen = [values[index] if index < len(values) else None for index in devices]
    seen = [value for value in chosen if value is not None]
    return min(seen) * 1024**2 if len(seen) == len(devices) else None


async def settle(
    probe: MemoryProbe,
    *,
    interval_seconds: float = 1.0,
    longest_seconds: float = 120.0,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Settled:
    """Poll until the last samples differ by less than 256 MiB, or the time is up."""
    samples: deque[int] = deque(maxlen=_SAMPLES)
    waited = 0.0
    while True:
        value = await probe()
        if value is None:
            return Settled(None, waited, still=True)
        samples.append(value)
        if len(samples) == _SAMPLES and max(samples) - min(samples) < _STILL_BYTES:
            return Settled(value, waited, still=True)
        if waited >= longest_seconds:
            return Settled(value, waited, still=False)
        await sleep(interval_seconds)
        waited += interval_seconds


async def look_at(address: str) -> Measured | None:
    """What the node has: memory, GPUs, processor. None when it does not answer."""
    return parse(await output(address, ("sh", "-c", COMMAND)))


async def settled_look(address: str, expected_bytes: int | None = None) -> Measured | None:
    """Look until free memory rises no more: engines that were stopped a moment ago still give theirs back.

    ``expected_bytes`` is what was free the last time: when that is there again, nothing is waited for.
    """
    look = await look_at(address)
    still = waited = 0
    while look is not None and still < _STILL_LOOKS and waited < _MOST_LOOKS:
        if expected_bytes is not None and look.free_bytes > expected_bytes * 0.99:
            break
        await asyncio.sleep(_LOOK_SECONDS)
        waited += 1
        after = await look_at(address)
        if after is None:
            break
        still = 0 if after.free_bytes > look.free_bytes + _RISING_BYTES else still + 1
        look = after
    return look
