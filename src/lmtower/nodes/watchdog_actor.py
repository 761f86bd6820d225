"""Carries out what the watchdog decides: tells the gateway, stops engines, counts and logs."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Mapping
from typing import Protocol
from urllib.parse import urlsplit

from lmtower.logs import get_logger
from lmtower.nodes.agent_exporter import WatchdogReading
from lmtower.nodes.agent_memory import Memory
from lmtower.nodes.watchdog import Hold, Policy, Reading, Stop, Watch, decide

log = get_logger(__name__)

DEFAULT_IMPORTANCE = 50


class Tower(Protocol):
    """The tower's admin API, as far as the watchdog needs it."""

    def post(self, path: str, body: Mapping[str, object]) -> bool:
        """True when the tower did it. Never raises: a node guards its memory without a tower, too."""
        ...


class Engines(Protocol):
    """The engines that run on this node."""

    def running(self) -> Mapping[str, int]:
        """Engine -> memory in bytes that it is known to hold (0: unknown)."""
        ...

    def stop(self, engine: str) -> bool:
        """Stop it here and now; False when that failed or there is no such engine."""
        ...


class AdminApi:
    """The admin API over HTTP. ``key`` never shows in ``repr`` or a log."""

    def __init__(self, url: str, key: str, timeout_seconds: float = 3.0) -> None:
        self.url = url
        self._key = key
        self._timeout_seconds = timeout_seconds

    def post(self, path: str, body: Mapping[str, object]) -> bool:
        """POST as JSON; True for a 2xx answer."""
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self._timeout_seconds)
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        try:
            connection.request("POST", parts.path.rstrip("/") + path, json.dumps(body).encode(), headers)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            log.warning("watchdog.tower_unreachable", url=self.url, error=str(error))
            return False
        finally:
            connection.close()
        if status >= 300:
            log.warning("watchdog.tower_refused", url=self.url, path=path, status=status)
        return status < 300


class Watchdog:
    """One node's watchdog. Call ``step`` about once a second."""

    def __init__(
        self,
        node: str,
        policy: Policy,
        read: Callable[[], Memory],
        tower: Tower | None,
        engines: Engines,
        importance: Mapping[str, int],
        clock: Callable[[], float],
    ) -> None:
        self.node = node
        self.policy = policy
        self._read = read
        self._tower = tower
        self._engines = engines
        self._importance = importance
        self._clock = clock
        self._watch = Watch()
        self._stopped: set[str] = set()
        self._actions: dict[str, int] = {"hold": 0, "release": 0, "stop": 0, "stop_failed": 0}

    @property
    def reading(self) -> WatchdogReading:
        """Level and counts, for the exporter."""
        return WatchdogReading(self._watch.level, dict(self._actions))

    def step(self) -> None:
        """Look once and do what is to be done."""
        memory = self._read()
        before = self._watch.level
        reading = Reading(memory.available_bytes, memory.stalled)
        self._watch, actions = decide(self._watch, reading, self._clock(), self.policy)
        if self._watch.level != before:
            log.warning(
                "watchdog.level",
                node=self.node,
                level=self._watch.level,
                before=before,
                available_bytes=memory.available_bytes,
                reserve_bytes=self.policy.reserve_bytes,
                stalled=memory.stalled,
            )
        for action in actions:
            if isinstance(action, Hold):
                self._hold(action)
            else:
                self._stop(action)

    def _hold(self, hold: Hold) -> None:
        self._actions["hold" if hold.on else "release"] += 1
        told = self._tower is not None and self._tower.post(
            "/admin/hold", {"node": self.node, "lanes": list(hold.lanes), "on": hold.on}
        )
        log.warning("watchdog.hold", node=self.node, lanes=hold.lanes, on=hold.on, told=told)

    def _stop(self, stop: Stop) -> None:
        victim = self._least_important()
        if victim is None:
            self._actions["stop_failed"] += 1
            log.error("watchdog.nothing_to_stop", node=self.node, reason=stop.reason)
            return
        # The tower first, so that it does not start the engine again; but memory does not wait for its answer.
        told = self._tower is not None and self._tower.post(f"/admin/engines/{victim}/stop", {"reason": stop.reason})
        done = self._engines.stop(victim)
        if told or done:
            self._stopped.add(victim)
        self._actions["stop" if told or done else "stop_failed"] += 1
        log.error("watchdog.stop", node=self.node, engine=victim, reason=stop.reason, told=told, stopped_here=done)

    def _least_important(self) -> str | None:
        """Lowest importance in the tower file; among equals the one that gives most memory back.

        A node without containers runs its engines as processes of the tower: then those that the tower file names
        are asked for, each once.
        """
        running = self._engines.running() or dict.fromkeys(self._importance.keys() - self._stopped, 0)
        return min(
            running,
            key=lambda engine: (self._importance.get(engine, DEFAULT_IMPORTANCE), -running[engine], engine),
            default=None,
        )
