"""The watchdog's decisions: thresholds, patience, hysteresis, order; and that they are carried out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtower.nodes.agent_memory import read_memory
from lmtower.nodes.watchdog import Action, Hold, Policy, Reading, Stop, Watch, decide
from lmtower.nodes.watchdog_actor import Watchdog
from tests.nodes.fake_node import GIB, FakeProc

POLICY = Policy(reserve_bytes=12 * GIB)
BATCH, BOTH = ("batch",), ("batch", "default")


def run(story: list[tuple[float, float, float]]) -> list[tuple[float, Action]]:
    """Play (time, GiB available, share stalled) and return what is done when."""
    watch, done = Watch(), []
    for now, gib, stalled in story:
        watch, actions = decide(watch, Reading(int(gib * GIB), stalled), now, POLICY)
        done += [(now, action) for action in actions]
    return done


def seconds(start: int, end: int, gib: float, stalled: float = 0.0) -> list[tuple[float, float, float]]:
    """One reading a second, always the same."""
    return [(now, gib, stalled) for now in range(start, end)]


def names(done: list[tuple[float, Action]]) -> list[tuple[float, object]]:
    """Actions in short: lanes held, lanes released with a minus, or ``stop``."""
    return [(now, "stop" if isinstance(one, Stop) else (one.on, one.lanes)) for now, one in done]


def test_enough_memory_changes_nothing() -> None:
    """A calm node is left alone."""
    assert run(seconds(0, 300, 20)) == []


def test_memory_under_reserve_holds_batch_then_default_then_stops() -> None:
    """The gentle way down, ten seconds a step."""
    done = names(run(seconds(0, 31, 11)))
    assert done == [(0, (True, BATCH)), (10, (True, BOTH)), (20, "stop")]


def test_memory_under_three_quarters_holds_default_at_once() -> None:
    """There is no time for gentleness."""
    assert names(run(seconds(0, 1, 8.9))) == [(0, (True, BOTH))]


def test_memory_under_half_stops_at_once() -> None:
    """29 to 6 GiB in ten seconds was seen on real machines: hold everything and stop in the same look."""
    assert names(run(seconds(0, 1, 5.9))) == [(0, (True, BOTH)), (0, "stop")]


def test_second_engine_is_stopped_only_after_the_memory_had_time_to_return() -> None:
    """A GPU's memory comes back within a minute."""
    stops = [now for now, what in names(run(seconds(0, 130, 5.9))) if what == "stop"]
    assert stops == [0, 60, 120]


def test_nearly_nothing_left_stops_the_next_engine_sooner() -> None:
    """Under a quarter of the reserve waiting is worse than stopping."""
    stops = [now for now, what in names(run(seconds(0, 25, 2.9))) if what == "stop"]
    assert stops == [0, 10, 20]


def test_pressure_alone_holds_but_never_stops() -> None:
    """A slow disk raises PSI too."""
    done = names(run(seconds(0, 200, 40, stalled=0.5)))
    assert "stop" not in [what for _, what in done]
    assert done[:2] == [(0, (True, BATCH)), (10, (True, BOTH))]


def test_levels_fall_one_by_one_after_calm_minutes() -> None:
    """Default work is admitted first, batch work a minute later."""
    done = names(run(seconds(0, 1, 8.9) + seconds(1, 200, 20)))
    releases = [(now, what) for now, what in done if what != "stop" and not what[0]]  # type: ignore[index]
    assert releases == [(61, (False, ("default",))), (121, (False, BATCH))]


def test_memory_between_reserve_and_clearance_changes_nothing() -> None:
    """Hysteresis: 13 GiB is not danger, but not calm either."""
    done = names(run(seconds(0, 1, 11) + seconds(1, 300, 13)))
    assert {what for _, what in done} == {(True, BATCH)}


def test_calm_must_last() -> None:
    """Memory that swings around the reserve never releases a lane."""
    story = [(now, 11 if now % 20 == 0 else 20, 0.0) for now in range(300)]
    assert all(what == "stop" or what[0] for _, what in names(run(story)))  # type: ignore[index]


def test_hold_is_told_again_while_it_lasts() -> None:
    """A gateway that restarted learns of the hold within half a minute."""
    done = names(run(seconds(0, 1, 11) + seconds(1, 100, 13)))
    assert [now for now, _ in done] == [0, 30, 60, 90]


def test_new_trouble_after_calm_may_stop_at_once() -> None:
    """Having stopped something yesterday does not delay today's stop."""
    story = seconds(0, 1, 5) + seconds(1, 400, 20) + seconds(400, 401, 5)
    stops = [now for now, what in names(run(story)) if what == "stop"]
    assert stops == [0, 400]


@given(st.lists(st.tuples(st.floats(0, 40), st.floats(0, 1)), max_size=200))
def test_any_story_keeps_the_invariants(readings: list[tuple[float, float]]) -> None:
    """Levels stay in range, no engine is stopped above the reserve, and never two within ten seconds."""
    watch, last_stop = Watch(), -100.0
    for now, (gib, stalled) in enumerate(readings):
        watch, actions = decide(watch, Reading(int(gib * GIB), stalled), float(now), POLICY)
        assert 0 <= watch.level <= 3
        for action in actions:
            if isinstance(action, Stop):
                assert gib * GIB < POLICY.reserve_bytes
                assert now - last_stop >= POLICY.hurry_seconds
                last_stop = now
            elif isinstance(action, Hold) and not action.on:
                assert gib * GIB >= POLICY.reserve_bytes * POLICY.clearance - 1


class FakeTower:
    """Remembers what it was told."""

    def __init__(self, reachable: bool = True) -> None:
        self.told: list[tuple[str, Mapping[str, object]]] = []
        self.reachable = reachable

    def post(self, path: str, body: Mapping[str, object]) -> bool:
        """Take note."""
        self.told.append((path, body))
        return self.reachable


class FakeEngines:
    """Engines that give their memory back to the fake /proc when they stop."""

    def __init__(self, proc: FakeProc, **held: int) -> None:
        self.proc = proc
        self.held = dict(held)
        self.stopped: list[str] = []

    def running(self) -> Mapping[str, int]:
        """What still runs."""
        return self.held

    def stop(self, engine: str) -> bool:
        """Give the memory back."""
        self.stopped.append(engine)
        freed = self.held.pop(engine, None)
        if freed is None:
            return False
        self.proc.set(available=read_memory(self.proc.path).available_bytes + freed)
        return True


class Clock:
    """Turned by the test."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Now."""
        return self.now


def guard(proc: FakeProc, engines: FakeEngines, tower: FakeTower | None, clock: Clock, **importance: int) -> Watchdog:
    """A watchdog over the fake node."""
    return Watchdog("spark", POLICY, lambda: read_memory(proc.path), tower, engines, importance, clock)


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    """A fake /proc."""
    return FakeProc(tmp_path / "proc")


def test_falling_memory_is_met_step_by_step(proc: FakeProc) -> None:
    """The whole story on a fake /proc: hold batch, hold default, stop the least important, release when calm."""
    tower, clock = FakeTower(), Clock()
    engines = FakeEngines(proc, nemotron=75 * GIB, eyes=14 * GIB, coder=5 * GIB)
    watchdog = guard(proc, engines, tower, clock, nemotron=90, eyes=40, coder=60)
    proc.set(available=11 * GIB)
    for second in range(300):
        clock.now = second
        watchdog.step()
    assert engines.stopped == ["eyes"]
    told = [(path, body.get("lanes"), body.get("on")) for path, body in tower.told]
    changes = [one for one, before in zip(told, [None, *told], strict=False) if one != before]
    assert changes == [
        ("/admin/hold", ["batch"], True),
        ("/admin/hold", ["batch", "default"], True),
        ("/admin/engines/eyes/stop", None, None),
        ("/admin/hold", ["batch", "default"], True),
        ("/admin/hold", ["default"], False),
        ("/admin/hold", ["batch"], True),
        ("/admin/hold", ["batch"], False),
    ]
    assert watchdog.reading.level == 0
    assert watchdog.reading.actions["stop"] == 1
    assert all(body["node"] == "spark" for path, body in tower.told if path == "/admin/hold")


def test_equal_importance_stops_the_one_that_gives_most_back(proc: FakeProc) -> None:
    """Without a word in the tower file, size decides."""
    engines = FakeEngines(proc, small=2 * GIB, large=30 * GIB)
    proc.set(available=2 * GIB)
    guard(proc, engines, FakeTower(), Clock()).step()
    assert engines.stopped == ["large"]


def test_unreachable_tower_does_not_keep_an_engine_running(proc: FakeProc) -> None:
    """The node guards itself."""
    engines = FakeEngines(proc, eyes=14 * GIB)
    proc.set(available=2 * GIB)
    watchdog = guard(proc, engines, FakeTower(reachable=False), Clock())
    watchdog.step()
    assert engines.stopped == ["eyes"]
    assert watchdog.reading.actions["stop"] == 1


def test_nothing_to_stop_is_counted_not_raised(proc: FakeProc) -> None:
    """A node full of other people's processes: say so and go on."""
    proc.set(available=2 * GIB)
    watchdog = guard(proc, FakeEngines(proc), None, Clock())
    watchdog.step()
    assert watchdog.reading.actions["stop_failed"] == 1


def test_processes_are_stopped_by_the_tower_one_after_the_other(proc: FakeProc) -> None:
    """Without containers the tower is asked, for the least important first, for each once."""
    tower, clock = FakeTower(), Clock()
    proc.set(available=2 * GIB)
    watchdog = guard(proc, FakeEngines(proc), tower, clock, nemotron=90, eyes=40)
    for second in range(100):
        clock.now = second
        watchdog.step()
    stops = [path for path, _ in tower.told if path != "/admin/hold"]
    assert stops == ["/admin/engines/eyes/stop", "/admin/engines/nemotron/stop"]
