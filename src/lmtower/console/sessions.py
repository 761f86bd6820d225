"""Who is logged in: sessions in memory, a brake on wrong keys."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

COOKIE = "lmtower_console"
IDLE_SECONDS = 12 * 3600.0
_MOST = 100
_WRONG = 5
_WINDOW_SECONDS = 30.0


@dataclass(slots=True)
class Session:
    """One browser. ``notices`` are shown once, on the next page; ``new_key`` is a client key that was just made."""

    key: str = field(repr=False)
    seen_at: float
    notices: list[tuple[str, str]] = field(default_factory=list)
    new_key: tuple[str, str] | None = field(default=None, repr=False)

    def say(self, text: str, kind: str = "good") -> None:
        """Tell the person something on the next page."""
        self.notices.append((kind, text))

    def take_notices(self) -> list[tuple[str, str]]:
        """What was to be said, once."""
        taken, self.notices = self.notices, []
        return taken


class Sessions:
    """Server-side: the browser holds a random name only, so a restart of the console logs everybody out."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._sessions: dict[str, Session] = {}
        self._wrong: list[float] = []

    def open(self, key: str) -> str:
        """A new session; returns the cookie's value."""
        self._drop_idle()
        while len(self._sessions) >= _MOST:
            del self._sessions[min(self._sessions, key=lambda name: self._sessions[name].seen_at)]
        name = secrets.token_urlsafe(32)
        self._sessions[name] = Session(key, self._clock())
        return name

    def find(self, name: str | None) -> Session | None:
        """The session of a cookie, if it lives."""
        session = self._sessions.get(name or "")
        if session is None or self._clock() - session.seen_at > IDLE_SECONDS:
            return None
        session.seen_at = self._clock()
        return session

    def close(self, name: str | None) -> None:
        """Log out."""
        self._sessions.pop(name or "", None)

    def watched(self, seconds: float) -> bool:
        """Whether anybody looked within the last seconds."""
        now = self._clock()
        return any(now - session.seen_at < seconds for session in self._sessions.values())

    def any_key(self) -> str | None:
        """The admin key of the session seen last."""
        latest = max(self._sessions.values(), key=lambda session: session.seen_at, default=None)
        return None if latest is None else latest.key

    def may_try(self) -> bool:
        """False after too many wrong keys in a short time, whoever sent them."""
        now = self._clock()
        self._wrong = [at for at in self._wrong if now - at < _WINDOW_SECONDS]
        return len(self._wrong) < _WRONG

    def was_wrong(self) -> None:
        """Count a wrong key."""
        self._wrong.append(self._clock())

    def _drop_idle(self) -> None:
        now = self._clock()
        self._sessions = {n: s for n, s in self._sessions.items() if now - s.seen_at <= IDLE_SECONDS}
