"""How late the event loop runs: a timer that notices its own delay."""

from __future__ import annotations

import asyncio


class LoopLag:
    """Measures the event loop's delay four times a second while it runs."""

    def __init__(self, every_seconds: float = 0.25) -> None:
        self.every_seconds = every_seconds
        self._worst = 0.0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin measuring on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._arm()

    def stop(self) -> None:
        """Stop measuring."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def take(self) -> float:
        """Largest delay in seconds since the last call, the one that is building up now included."""
        worst, self._worst = self._worst, 0.0
        overdue = self._loop.time() - self._due if self._timer is not None else 0.0
        return max(worst, overdue, 0.0)

    def _arm(self) -> None:
        self._due = self._loop.time() + self.every_seconds
        self._timer = self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        self._worst = max(self._worst, self._loop.time() - self._due)
        self._arm()
