"""Memory of the nodes while a plan is made: which GPU an engine goes to, and what stays free there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmtower.plan.types import NodeFacts
from lmtower.plan.wants import Want

_GIB = 1024**3


def budget(facts: NodeFacts) -> int:
    """Bytes that engines may use on one GPU of a node: what is free before any of them runs, less the reserve.

    On unified memory the operating system's own share is gone from what was measured (a GB10 boots with 113 to 116 of
    121.7 GiB), and the reserve is what MemAvailable must still show when all engines run: the start and the
    watchdog compare with the same number.
    """
    return min(facts.memory_total_bytes, facts.memory_available_bytes) - facts.reserve


@dataclass(frozen=True, slots=True)
class Seat:
    """Where one copy runs on one node."""

    node: str
    devices: tuple[int, ...]


class Board:
    """Free bytes of every GPU of every node. Largest engines are seated first, each on the emptiest GPUs."""

    def __init__(self, facts: Mapping[str, NodeFacts]) -> None:
        self._free = {name: [budget(node)] * max(1, node.gpus) for name, node in facts.items()}
        self._seats: dict[str, tuple[Seat, ...]] = {}
        self._taken: dict[str, int] = {}

    def seat(self, wants: Sequence[tuple[Want, int]]) -> None:
        """Seats engines that need so many bytes a GPU."""
        for want, needed in sorted(wants, key=lambda pair: -pair[1]):
            seats = []
            for node in want.nodes:
                gpus = want.options.tensor_parallel // len(want.nodes) if want.spans else want.options.tensor_parallel
                free = self._free[node]
                order = sorted(range(len(free)), key=lambda gpu: -free[gpu])[: max(1, gpus)]
                seats.append(Seat(node, tuple(sorted(order))))
            self._seats[want.name] = tuple(seats)
            self.take(want.name, needed)

    def take(self, name: str, needed: int) -> None:
        """Sets what an engine takes on each of its GPUs."""
        change = needed - self._taken.get(name, 0)
        self._taken[name] = needed
        for seat in self._seats[name]:
            for gpu in seat.devices:
                self._free[seat.node][gpu] -= change

    def seats(self, name: str) -> tuple[Seat, ...]:
        """Where an engine sits."""
        return self._seats[name]

    def free_for(self, name: str) -> int:
        """Bytes that an engine could take more on the fullest of its GPUs."""
        return min(self._free[seat.node][gpu] for seat in self._seats[name] for gpu in seat.devices)

    def free_on(self, node: str) -> int:
        """Bytes free on the fullest GPU of a node."""
        return min(self._free[node])

    def lacks_gpus(self, want: Want) -> bool:
        """True when a node has fewer GPUs than one copy needs."""
        gpus = want.options.tensor_parallel // len(want.nodes) if want.spans else want.options.tensor_parallel
        return any(len(self._free[node]) < gpus for node in want.nodes)
