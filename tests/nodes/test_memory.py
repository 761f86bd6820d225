"""Free memory: read, and waited for until it stands still."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lmtower.nodes.memory import free_on_card, mem_available, settle, settled_look
from lmtower.plan.measured import Measured

GIB = 1024**3


async def no_sleep(_: float) -> None:
    """Time passes at once."""


def probe_of(values: Iterator[int | None]):  # type: ignore[no-untyped-def]
    """A node whose free memory is this."""

    async def probe() -> int | None:
        return next(values)

    return probe


def test_mem_available_is_read_in_bytes() -> None:
    """MemAvailable is in kB in /proc/meminfo."""
    assert mem_available("MemTotal: 10 kB\nMemAvailable:    2048 kB\n") == 2048 * 1024
    assert mem_available("") is None


def test_card_that_tells_nothing_is_unknown() -> None:
    """nvidia-smi on a GB10 prints [N/A]; on several cards the emptiest counts."""
    assert free_on_card("[N/A]\n") is None
    assert free_on_card("100\n200\n") == 200 * 1024**2


@pytest.mark.parametrize(
    ("devices", "free"), [((0,), 100), ((1,), 200), ((0, 1), 100), ((1, 2), None), ((3,), None), ((), 200)]
)
def test_card_is_asked_for_the_engines_own_gpus(devices: tuple[int, ...], free: int | None) -> None:
    """The fullest of them counts: a rank on each must fit. A GPU that does not tell makes the answer unknown."""
    assert free_on_card("100\n200\n[N/A]\n", devices) == (None if free is None else free * 1024**2)


async def test_settle_waits_until_memory_stands_still() -> None:
    """A container that has just stopped gives its memory back slowly."""
    values = iter([90 * GIB, 95 * GIB, 100 * GIB, 110 * GIB, 111 * GIB, *[111 * GIB] * 9])
    settled = await settle(probe_of(values), sleep=no_sleep)
    assert (settled.available_bytes, settled.still, settled.seconds) == (111 * GIB, True, 7.0)


async def test_settle_gives_up_on_memory_that_keeps_moving() -> None:
    """Something else is starting there; that is told, and the last value used."""
    values = iter(value * GIB for value in range(100))
    settled = await settle(probe_of(values), longest_seconds=10, sleep=no_sleep)
    assert (settled.still, settled.available_bytes) == (False, 10 * GIB)


async def test_settle_of_a_silent_node_is_unknown() -> None:
    """Never invent a value for an unknown fact."""
    assert (await settle(probe_of(iter([None])), sleep=no_sleep)).available_bytes is None


@pytest.mark.parametrize(
    ("expected", "looks", "found"),
    [
        (None, 6, 111 * GIB),  # until it has not risen twice
        (100 * GIB, 3, 100 * GIB),  # as much as the last time is there: no more waiting
        (200 * GIB, 6, 111 * GIB),  # less than the last time stays less
    ],
)
async def test_node_is_looked_at_when_its_memory_has_come_back(
    monkeypatch: pytest.MonkeyPatch, expected: int | None, looks: int, found: int
) -> None:
    """Right after `down` a GB10 still gives memory back; a plan made then would be too small."""
    values = iter([90, 95, 100, 111, 111, 111, 111])
    asked = []

    async def look_at(address: str) -> Measured:
        asked.append(address)
        return Measured("aarch64", 122 * GIB, next(values) * GIB)

    monkeypatch.setattr("lmtower.nodes.memory.look_at", look_at)
    monkeypatch.setattr("lmtower.nodes.memory._LOOK_SECONDS", 0.0)
    seen = await settled_look("local", expected)
    assert seen is not None
    assert (len(asked), seen.free_bytes) == (looks, found)
