"""The event loop's own delay."""

from __future__ import annotations

import asyncio
import time

from lmtower.telemetry import LoopLag


async def test_blocked_loop_is_noticed() -> None:
    """A callback that blocks the loop shows up as lag, even before the timer could fire."""
    lag = LoopLag(every_seconds=0.001)
    lag.start()
    time.sleep(0.05)  # noqa: ASYNC251 - blocking the loop is the point
    assert lag.take() >= 0.04
    lag.stop()


async def test_take_starts_a_new_window() -> None:
    """The largest delay is told once."""
    lag = LoopLag(every_seconds=0.001)
    lag.start()
    time.sleep(0.2)  # noqa: ASYNC251 - blocking the loop is the point
    await asyncio.sleep(0.005)
    assert lag.take() >= 0.19
    assert lag.take() < 0.19
    lag.stop()
