"""The gateway's metrics: counted in plain ints, rendered when somebody scrapes.

Theory of operation. A series is the tuple (persona, client, engine, lane). The first ``max_clients`` clients get
series of their own; later ones are counted as ``other``. Once an hour, at a scrape, an ``other`` client that sent
more than twice the requests of the quietest named client takes that client's place: the quiet client's series end
and the new one's start at zero, so no counter ever jumps and ``rate()`` stays true. Totals over all clients
therefore come from ``sum(rate(...))``, never from the sum of raw counters. While there are no more than
``max_clients`` clients nothing is ever dropped and the counters equal the ledger.

Everything runs on the event loop's thread; there are no locks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from lmtower.errors import TowerError
from lmtower.telemetry import exposition
from lmtower.telemetry.families import EVENTS, Family
from lmtower.telemetry.series import CacheSplit, EndUser, Finished, Series
from lmtower.telemetry.state import TowerState

OTHER = "other"
_MAX_PERSONAS = 500  # personas come from the tower file; the cap holds even if a caller passes clients' text
_MAX_END_USERS = 200  # first come, first served; the rest of each client is counted as other
_PROMOTION_SECONDS = 3600.0
_PROMOTION_FACTOR = 2


class Metrics:
    """Counts requests and events; ``state`` is asked for gauges at each scrape."""

    def __init__(
        self,
        max_clients: int = 100,
        state: Callable[[], TowerState] = TowerState,
        *,
        version: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_clients = max_clients
        self.state = state
        self.version = version
        self.last_render_seconds = 0.0
        self._clock = clock
        self._series: dict[tuple[str, str, str, str], Series] = {}
        self._end_users: dict[tuple[str, str], EndUser] = {}
        self._splits: dict[tuple[str, str], CacheSplit] = {}
        self._targets: Mapping[str, float] = {}
        self._named: dict[str, None] = {}  # clients with series of their own, first come first
        self._waiting: dict[str, int] = {}  # requests of clients counted as other, since the last promotion
        self._promoted_at = clock()
        self._personas: set[str] = set()
        self._events: dict[Family, dict[tuple[str, ...], int]] = {family: {} for family in EVENTS}

    def set_ttft_targets(self, targets: Mapping[str, float]) -> None:
        """Persona -> seconds that count as good. Call it for every snapshot put into service."""
        self._targets = dict(targets)
        for series in self._series.values():
            series.ttft_target = self._targets.get(series.key[0])

    def finished(self, record: Finished) -> None:
        """Count one finished request (about 1.5 µs). The record is kept as exemplar and must not change."""
        series = self._series.get((record.persona, record.client, record.engine, record.lane))
        if series is None:
            series = self.series(record.persona, record.client, record.engine, record.lane)
            if series.key[1] == OTHER:
                self._note_waiting(record.client)
        series.finished(record)
        if record.end_user:
            self._end_user(series.key[1], record.end_user).finished(record)

    def _end_user(self, client: str, name: str) -> EndUser:
        known = self._end_users
        found = known.get((client, name))
        if found is None:
            key = (client, name) if len(known) < _MAX_END_USERS else (client, OTHER)
            found = known.get(key)
            if found is None:
                found = known[key] = EndUser()
        return found

    def series(self, persona: str | None, client: str | None, engine: str | None, lane: str | None) -> Series:
        """The series for these labels. Keep it for a request and call ``inter_token(seconds)`` on it per chunk."""
        client = self._client_label(client or "")
        key = (self._persona_label(persona or ""), client, engine or "", lane or "")
        series = self._series.get(key)
        if series is None:
            split = self._splits.setdefault((key[0], key[2]), CacheSplit())
            series = self._series[key] = Series(key, split, self._targets.get(key[0]))
        return series

    def count(self, family: Family, *labels: str, by: int = 1) -> None:
        """Count an event of ``families.EVENTS``; ``labels`` in the order of the family."""
        values = self._events[family]
        if len(labels) != len(family.labels):
            raise TowerError(f"metric {family.name!r} takes the labels {family.labels!r}, not {labels!r}")
        if family.labels[:1] == ("client",):
            labels = (self._client_label(labels[0]), *labels[1:])
        values[labels] = values.get(labels, 0) + by

    def render(self, accept: str = "") -> tuple[str, bytes]:
        """Content type and body for a scrape; OpenMetrics with exemplars when ``accept`` asks for it."""
        content_type, parts = self.render_parts(accept)
        return content_type, "".join(parts).encode()

    def render_parts(self, accept: str = "") -> tuple[str, Iterator[str]]:
        """As ``render``, one family at a time, so that a server can let the event loop breathe in between."""
        self._promote()
        openmetrics = exposition.wants_openmetrics(accept)
        return exposition.content_type(openmetrics), self._parts(openmetrics)

    def _parts(self, openmetrics: bool) -> Iterator[str]:
        spent = 0.0
        page = exposition.Page(openmetrics)
        parts = page.parts(
            list(self._series.values()),
            self._end_users,
            self._splits,
            self._events,
            self.state(),
            self._own_gauges(),
            self._named,
        )
        while True:
            started = self._clock()
            part = next(parts, None)
            spent += self._clock() - started
            if part is None:
                break
            yield part
        self.last_render_seconds = spent

    def _own_gauges(self) -> exposition.OwnGauges:
        return exposition.OwnGauges(self.version, len(self._named), self.last_render_seconds)

    def _client_label(self, client: str) -> str:
        if client in self._named:
            return client
        if len(self._named) < self.max_clients:
            self._named[client] = None
            return client
        return OTHER

    def _persona_label(self, persona: str) -> str:
        if persona in self._personas:
            return persona
        if len(self._personas) < _MAX_PERSONAS:
            self._personas.add(persona)
            return persona
        return OTHER

    def _note_waiting(self, client: str) -> None:
        waiting = self._waiting
        if client in waiting or len(waiting) < 4 * self.max_clients:
            waiting[client] = waiting.get(client, 0) + 1

    def _promote(self) -> None:
        """Hand places of quiet clients to busy ones, at most once per ``_PROMOTION_SECONDS``."""
        now = self._clock()
        if now - self._promoted_at < _PROMOTION_SECONDS:
            return
        self._promoted_at = now
        activity = dict.fromkeys(self._named, 0)
        for series in self._series.values():
            total = sum(series.outcomes)
            if series.key[1] in activity:
                activity[series.key[1]] += total - series.seen
            series.seen = total
        candidates = sorted(self._waiting.items(), key=lambda item: -item[1])
        self._waiting = {}
        quiet = sorted(activity.items(), key=lambda item: item[1])
        for (busy, requests), (idle, few) in zip(candidates, quiet, strict=False):
            if requests <= _PROMOTION_FACTOR * few:
                return
            self._drop_client(idle)
            self._named[busy] = None

    def _drop_client(self, client: str) -> None:
        del self._named[client]
        for key in [key for key in self._series if key[1] == client]:
            del self._series[key]
        for pair in [pair for pair in self._end_users if pair[0] == client]:
            del self._end_users[pair]
        for family, values in self._events.items():
            if family.labels[:1] == ("client",):
                for labels in [labels for labels in values if labels[0] == client]:
                    del values[labels]
