"""Sliding windows against a model that remembers every single addition."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtower.ledger.windows import DAY, MINUTE, SlidingWindow

_steps = st.lists(st.tuples(st.floats(0, 20), st.integers(1, 50)), max_size=60)


@given(_steps)
def test_window_never_shows_less_than_was_used(steps: list[tuple[float, int]]) -> None:
    """At any moment the sum covers the true window, and at most 0.1 s more."""
    window, now, added = SlidingWindow(MINUTE), 1000.0, list[tuple[float, int]]()
    for pause, amount in steps:
        now += pause
        shown = window.used(now)
        exact = sum(much for at, much in added if at + MINUTE > now)
        late = sum(much for at, much in added if at + MINUTE + 0.1 + 1e-9 > now)
        assert exact <= shown <= late
        window.add(now, amount)
        added.append((now, amount))


@given(_steps, st.integers(50, 200))
def test_limit_is_never_exceeded_in_any_window(steps: list[tuple[float, int]], limit: int) -> None:
    """If only what fits is added, no interval of 60 s holds more than the limit, wherever it begins."""
    window, now, added = SlidingWindow(MINUTE), 1000.0, list[tuple[float, int]]()
    for pause, amount in steps:
        now += pause
        if window.used(now) + amount <= limit:
            window.add(now, amount)
            added.append((now, amount))
    for begin, _ in added:
        assert sum(amount for at, amount in added if begin <= at < begin + MINUTE) <= limit


@given(_steps.filter(bool), st.integers(1, 100))
def test_after_the_wait_there_is_room(steps: list[tuple[float, int]], wanted: int) -> None:
    """``wait`` is long enough, and infinite only if time alone does not help."""
    window, now = SlidingWindow(MINUTE), 1000.0
    for pause, amount in steps:
        now += pause
        window.add(now, amount)
    before = window.used(now)
    wait = window.wait(now, wanted)
    if wanted > before:
        assert wait == inf
    else:
        assert 0 <= wait <= MINUTE + 1e-6
        assert window.used(now + wait + 1e-6) <= before - wanted + 1e-6


@given(st.lists(st.floats(-5, 5), max_size=50))
def test_clock_that_goes_back_forgets_nothing_early(steps: list[float]) -> None:
    """A clock that is set back makes the window remember longer, never shorter."""
    window, now, latest = SlidingWindow(MINUTE), 1000.0, 1000.0
    for step in steps:
        now += step
        latest = max(latest, now)
        window.add(now, 1)
    assert window.used(min(now, latest)) == len(steps)


@given(_steps)
def test_taking_everything_back_leaves_nothing(steps: list[tuple[float, int]]) -> None:
    """Additions can be undone, even when they have left the window meanwhile."""
    window, now, undo = SlidingWindow(MINUTE), 1000.0, []
    for pause, amount in steps:
        now += pause
        window.used(now)
        undo.append((window.add(now, amount), amount))
    for entry, amount in undo:
        window.take_back(entry, amount)
    assert window.used(now) == 0


def test_spaced_additions_leave_exactly_on_time() -> None:
    """Without bursts the window is exact: room comes back 60 s after the use."""
    window = SlidingWindow(MINUTE)
    window.add(100.0, 1)
    window.add(110.0, 2)
    assert window.used(159.999) == 3
    assert window.used(160.0) == 2
    assert window.reset(160.0) == pytest.approx(10.0)
    assert window.used(170.0) == 0
    assert window.reset(170.0) == 0.0


def test_busy_window_stays_small() -> None:
    """A day of traffic is at most some 600 entries."""
    window = SlidingWindow(DAY)
    for second in range(0, 2 * 86_400, 10):
        window.used(second)
        window.add(second, 1)
    assert len(window._entries) <= 601
