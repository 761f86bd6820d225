"""Who takes part in a benchmark when not everybody can be had."""

from __future__ import annotations

import socket

import pytest
from benchmarks.contestants import EVERYBODY, Contestant
from benchmarks.gateway import check_free, parse, set_up
from benchmarks.processes import BenchError


def missing() -> Contestant:
    raise BenchError("no wheel for this machine")


@pytest.fixture
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is installed; sglang-router cannot be."""
    for name in EVERYBODY:
        monkeypatch.setitem(EVERYBODY, name, lambda name=name: Contestant(name))
    monkeypatch.setitem(EVERYBODY, "sglang-router", missing)


@pytest.mark.usefixtures("nobody_else")
def test_neighbour_that_cannot_be_had_is_left_out_and_named() -> None:
    """The others are still measured, and the tables say who is missing and why."""
    notes: set[str] = set()
    found = [contestant.name for contestant in set_up(parse([]), notes)]
    assert found == [name for name in EVERYBODY if name != "sglang-router"]
    assert notes == {"sglang-router is left out: no wheel for this machine"}


@pytest.mark.usefixtures("nobody_else")
def test_neighbour_that_was_asked_for_must_be_there() -> None:
    """A comparison with somebody who is missing is none."""
    with pytest.raises(BenchError, match="no wheel"):
        set_up(parse(["--contestants", "lmtower,sglang-router"]), set())


def test_taken_port_is_told_before_anything_starts() -> None:
    """Two benchmarks at once would measure each other."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BenchError, match=f"port {port} is taken"):
            check_free(port)
    check_free(port)
