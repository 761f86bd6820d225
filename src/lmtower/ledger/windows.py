"""Sliding windows: how much was used in the last minute or day, and when there is room again. Pure.

Theory of operation. A window is a queue of (first, last, amount) entries and their sum. An entry leaves when its
*last* addition is older than the window, so the sum is never less than what was really used in any window of that
length: a limit is never exceeded. Additions within 1/600 of the window share an entry; the price is that such a
burst is remembered up to 0.1 s of a minute (2.4 min of a day) too long, the gain is at most some 600 entries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import inf

MINUTE = 60.0
DAY = 86_400.0


class Entry:
    """What was used between two close moments."""

    __slots__ = ("amount", "first", "last")

    def __init__(self, now: float, amount: float) -> None:
        self.first = self.last = now
        self.amount = amount


class SlidingWindow:
    """What was used in the last ``seconds``. Times must not go backwards by more than clocks do."""

    __slots__ = ("_entries", "_grain", "seconds", "total")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.total: float = 0
        self._entries: deque[Entry] = deque()
        self._grain = seconds / 600

    def used(self, now: float) -> float:
        """The sum over the last ``seconds``."""
        entries = self._entries
        while entries and entries[0].last + self.seconds <= now:
            entry = entries.popleft()
            self.total -= entry.amount
            entry.amount = 0  # so that a late ``take_back`` finds nothing
        if not entries:
            self.total = 0  # floats: forget rounding
        return self.total

    def add(self, now: float, amount: float) -> Entry:
        """Count ``amount`` at ``now``; the entry can be given to ``take_back``."""
        self.total += amount
        entries = self._entries
        if entries:
            entry = entries[-1]
            if now < entry.first + self._grain:  # also when the clock went back: never forget too early
                entry.amount += amount
                if now > entry.last:
                    entry.last = now
                return entry
        entry = Entry(now, amount)
        entries.append(entry)
        return entry

    def take_back(self, entry: Entry, amount: float) -> None:
        """Undo an addition, if it is still in the window."""
        amount = min(amount, entry.amount)
        entry.amount -= amount
        self.total -= amount

    def wait(self, now: float, amount: float) -> float:
        """Seconds until the sum has fallen by ``amount``; infinite if it never will by time alone."""
        for entry in self._entries:
            amount -= entry.amount
            if amount <= 1e-9:
                return max(0.0, entry.last + self.seconds - now)
        return inf

    def entries(self) -> Iterator[tuple[float, float]]:
        """(last, amount) of what is remembered, oldest first."""
        return ((entry.last, entry.amount) for entry in self._entries)

    def reset(self, now: float) -> float:
        """Seconds until nothing of what was used counts any more."""
        return max(0.0, self._entries[-1].last + self.seconds - now) if self._entries else 0.0
