"""Looks at the tower every few seconds, more rarely while nobody looks at the console."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lmtower.console.samples import Recent, sample
from lmtower.console.sessions import Sessions
from lmtower.console.settings import Json, Settings
from lmtower.console.tower import Tower
from lmtower.errors import AdminError

_WATCHED_SECONDS = 30.0
_UNWATCHED_FACTOR = 5


class Watch:
    """The latest status, metrics page and samples; ``trouble`` says why there are no newer ones."""

    def __init__(self, settings: Settings, tower: Tower, sessions: Sessions, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._tower = tower
        self._sessions = sessions
        self._clock = clock
        self.recent = Recent()
        self.status: Json | None = None
        self.page = ""
        self.trouble: str | None = None

    async def run(self) -> None:
        """Until cancelled."""
        every = self._settings.sample_seconds
        while True:
            await self.look()
            await asyncio.sleep(every if self._sessions.watched(_WATCHED_SECONDS) else every * _UNWATCHED_FACTOR)

    async def look(self) -> None:
        """Take one sample. Without an admin key (before the first login, on another machine) nothing is asked."""
        key = self._settings.secret("admin.key") or self._sessions.any_key()
        if key is None:
            return
        try:
            status = await self._tower.get(key, "/admin/status")
            page = await self._tower.metrics()
        except AdminError as error:
            self.trouble = str(error)
            return
        self.status, self.page, self.trouble = status, page, None
        self.recent.add(sample(self._clock(), status, page))
