"""The supervisor: keeps started engines running, one owner of their states.

    stopped ──start──> starting ──healthy──> ready ──stop──> draining ──> stopped
                          │  ^                 │
                     gives up └──── back-off ──┴─ ended, or silent for long
                          v
                        failed ──restart──> starting

Theory of operation. ``launch`` runs one engine and waits until it answers; a failure is explained by its log and
leaves nothing behind. Once ready, a watch of the drivers sees an engine that ended or no longer answers. A
container with a restart policy of its own comes back by itself: it is ``starting`` until it answers. One whose policy
was taken away on its node was stopped there on purpose: it is ``stopped``, and stays so until somebody starts it,
here or there. Everything else is started again after a pause that doubles with each crash and is forgotten after a
quiet time. All starts go through one lock per node, because two engines that load at once mis-measure each other's
memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lmtower.engines.failures import recognise
from lmtower.engines.spec import LaunchSpec
from lmtower.errors import EngineError, TowerError
from lmtower.nodes.drivers import Driver, Observed
from lmtower.nodes.drivers.base import stopped_on_purpose
from lmtower.nodes.http import healthy, listens, request

State = Literal["stopped", "starting", "ready", "draining", "failed"]
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0
_QUIET_SECONDS = 300.0
_SILENT_CHECKS = 5


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One copy of an engine as the supervisor sees it. ``since`` is wall-clock time."""

    spec: LaunchSpec
    state: State
    since: float
    detail: str = ""
    restarts: int = 0


class Supervisor:
    """Engines of one tower, keyed by node and name.

    ``on_change`` is called with each new status, in the loop. ``on_return`` is awaited on the side when an engine
    came back by itself: its caches are cold, so that is where it is warmed up again.
    """

    def __init__(
        self,
        drivers: Mapping[str, Driver],
        *,
        on_change: Callable[[EngineStatus], None] | None = None,
        on_return: Callable[[LaunchSpec], Awaitable[object]] | None = None,
        watch_seconds: float = 1.0,
        start_timeout_seconds: float = 1800.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._drivers = drivers
        self._on_change = on_change
        self._on_return = on_return
        self._returns: set[asyncio.Task[object]] = set()
        self._watch_seconds = watch_seconds
        self._start_timeout = start_timeout_seconds
        self._clock = clock
        self._status: dict[tuple[str, str], EngineStatus] = {}
        self._crashes: dict[tuple[str, str], int] = {}
        self._silent: dict[tuple[str, str], int] = {}
        self._returned: dict[tuple[str, str], int] = {}
        """How often its node had restarted each engine when it was last looked at."""
        self._locks: dict[str, asyncio.Lock] = {}
        self._restarts: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._watch: asyncio.Task[None] | None = None

    def statuses(self) -> tuple[EngineStatus, ...]:
        """Every engine that was ever started or adopted here, in that order."""
        return tuple(self._status.values())

    async def launch(self, spec: LaunchSpec) -> None:
        """Start one engine and wait until it answers. Raises EngineError that says why it did not."""
        await self._cancel_restart((spec.node, spec.name))
        async with self._lock(spec.node):
            await self._start(spec)

    async def begin(self, spec: LaunchSpec) -> None:
        """Start one engine without waiting: it answers only when others have joined it. ``resume`` waits."""
        await self._cancel_restart((spec.node, spec.name))
        async with self._lock(spec.node):
            await self._run(spec)

    async def resume(self, spec: LaunchSpec) -> None:
        """Wait for an engine that runs already and does not answer yet. Raises EngineError as ``launch``."""
        await self._cancel_restart((spec.node, spec.name))
        async with self._lock(spec.node):
            self._set(spec, "starting")
            await self._until_ready(spec)

    async def drain(self, node: str, name: str) -> None:
        """Stop one copy on purpose: from now on the watch does not take its end for a crash."""
        key = (node, name)
        await self._cancel_restart(key)
        async with self._lock(node):
            if key in self._status:
                self._set(self._status[key].spec, "draining")
            await self._drivers[node].stop(name)
            if key in self._status:
                self._set(self._status[key].spec, "stopped")

    async def start(self, engine: str) -> None:
        """Start the copies of a known engine that do not run. Raises EngineError."""
        for key in self._keys(engine):
            if self._status[key].state in ("stopped", "failed"):
                await self.launch(self._status[key].spec)

    def adopt(self, spec: LaunchSpec, state: State = "ready", detail: str = "") -> None:
        """Watch an engine that runs already, or know of one that could not be started."""
        self._set(spec, state, detail)
        self._ensure_watch()

    async def stop(self, engine: str) -> None:
        """Stop all copies of an engine and forget them until the next start. Raises EngineError when unknown."""
        for key in self._keys(engine):
            await self.drain(*key)

    async def restart(self, engine: str) -> None:
        """Stop and start all copies, one after the other. Raises EngineError."""
        for key in self._keys(engine):
            await self.drain(*key)
            self._crashes.pop(key, None)
            await self.launch(self._status[key].spec)

    async def logs(self, engine: str, lines: int = 200) -> str:
        """The last lines of every copy of an engine. Raises EngineError when unknown."""
        parts = []
        for key in self._keys(engine):
            spec = self._status[key].spec
            parts.append(await self._drivers[spec.node].logs(spec.name, lines))
        return "\n".join(parts)

    def warm_later(self, spec: LaunchSpec) -> None:
        """Warm an engine up on the side, while it serves already."""
        if self._on_return is not None:
            task = asyncio.ensure_future(self._on_return(spec))
            self._returns.add(task)
            task.add_done_callback(self._returns.discard)

    async def close(self) -> None:
        """Stop watching and let go of the drivers: child processes end, containers stay."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        for key in list(self._restarts):
            await self._cancel_restart(key)
        for task in self._returns:
            task.cancel()
        await asyncio.gather(*self._returns, return_exceptions=True)
        await asyncio.gather(*(driver.close() for driver in self._drivers.values()))

    async def _start(self, spec: LaunchSpec) -> None:
        await self._run(spec)
        await self._until_ready(spec)

    async def _run(self, spec: LaunchSpec) -> None:
        driver = self._drivers[spec.node]
        self._returned.pop((spec.node, spec.name), None)
        self._set(spec, "starting")
        try:
            await _make_way(driver, spec)
            await driver.start(spec)
        except TowerError as error:
            self._set(spec, "failed", str(error))
            raise

    async def _until_ready(self, spec: LaunchSpec) -> None:
        driver = self._drivers[spec.node]
        begun = time.monotonic()
        try:
            await self._wait_ready(spec, driver)
        except TowerError as error:
            self._set(spec, "failed", str(error))
            raise
        except TimeoutError as error:
            log = await driver.logs(spec.name)
            await driver.stop(spec.name)
            message = _never_healthy(spec, time.monotonic() - begun, log)
            self._set(spec, "failed", message)
            raise EngineError(message) from error
        self._set(spec, "ready")
        self._ensure_watch()

    async def _wait_ready(self, spec: LaunchSpec, driver: Driver) -> None:
        begun = time.monotonic()
        pause = 0.05
        async with asyncio.timeout(self._start_timeout):
            while True:
                found = await _find(driver, spec)
                if found is None or not found.running or found.restarts:
                    await self._raise_ended(spec, driver, found, time.monotonic() - begun)
                if spec.health_path is None:
                    return
                if await healthy(spec.url, spec.health_path, spec.api_key) and await _is_itself(spec, driver):
                    return
                await asyncio.sleep(pause)
                pause = min(1.0, pause * 1.3)

    async def _raise_ended(self, spec: LaunchSpec, driver: Driver, found: Observed | None, seconds: float) -> None:
        log = await driver.logs(spec.name)
        await driver.stop(spec.name)
        code = found.exit_code if found else None
        killed = found.out_of_memory if found else False
        failure = recognise(log, code, out_of_memory=killed, port=spec.port, engine=spec.engine)
        raise EngineError(
            f"engine {spec.engine!r} on node {spec.node!r} stopped {seconds:.0f} s after its start (exit {code}): "
            f"{failure} Full log: lmtower logs {spec.engine}"
        )

    def _ensure_watch(self) -> None:
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._watch_forever(), name="engine supervisor")

    async def _watch_forever(self) -> None:
        while True:
            await asyncio.sleep(self._watch_seconds)
            for key, status in list(self._status.items()):
                lock = self._lock(status.spec.node)
                if status.state != "draining" and key not in self._restarts and not lock.locked():
                    # under the lock: an engine that is being replaced right now must not look like a crashed one
                    async with lock:
                        await self._check(key, self._status[key])

    async def _check(self, key: tuple[str, str], status: EngineStatus) -> None:
        try:
            await self._look(key, status)
        except TowerError as error:
            # A cut link says nothing about the engine; the gateway's own checks see whether it still answers.
            if status.state in ("ready", "starting"):
                self._set(status.spec, status.state, str(error))

    async def _look(self, key: tuple[str, str], status: EngineStatus) -> None:
        spec = status.spec
        driver = self._drivers[spec.node]
        found = await _find(driver, spec)
        if status.state in ("stopped", "failed"):
            if found is not None and found.running and found.spec_hash == spec.spec_hash:
                self._set(spec, "starting", "it was started on its node")
        elif found is not None and (found.returns or found.restarts > self._returned.setdefault(key, found.restarts)):
            self._returning(key, status)
            self._returned[key] = found.restarts
        elif found is not None and stopped_on_purpose(spec, found):
            self._set(spec, "stopped", _stopped_there(spec))
        elif found is None or not found.running:
            why = "nothing of it is left on its node"
            if found is not None:
                log = await driver.logs(spec.name)
                why = str(recognise(log, found.exit_code, port=spec.port, engine=spec.engine))
            self._crashed(key, spec, why)
        elif spec.health_path is None or await healthy(spec.url, spec.health_path, spec.api_key):
            self._silent.pop(key, None)
            if status.state == "starting":
                self.warm_later(spec)
            if status.state != "ready" or status.detail:
                self._set(spec, "ready")
            elif self._clock() - status.since > _QUIET_SECONDS:
                self._crashes.pop(key, None)
        elif status.state == "ready":
            self._silent[key] = self._silent.get(key, 0) + 1
            if self._silent[key] >= _SILENT_CHECKS:
                self._set(spec, "starting", "it runs but does not answer")

    def _returning(self, key: tuple[str, str], status: EngineStatus) -> None:
        """Its node starts it again; that may be over before the next look, and its caches are cold all the same."""
        if status.state == "ready":
            status = replace(status, state="starting", since=self._clock(), restarts=status.restarts + 1)
        self._put(key, replace(status, detail="it ended and is being restarted by its node"))

    def _crashed(self, key: tuple[str, str], spec: LaunchSpec, why: str) -> None:
        crashes = self._crashes[key] = self._crashes.get(key, 0) + 1
        pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** (crashes - 1))
        old = self._status[key]
        self._put(key, EngineStatus(spec, "failed", self._clock(), f"it ended: {why}", old.restarts + 1))
        self._restarts[key] = asyncio.create_task(self._start_again(key, spec, pause))

    async def _start_again(self, key: tuple[str, str], spec: LaunchSpec, pause: float) -> None:
        while True:
            await asyncio.sleep(pause)
            try:
                async with self._lock(spec.node):
                    await self._start(spec)
            except TowerError:
                pause = min(_LONGEST_PAUSE_SECONDS, max(1.0, pause * 2))
                continue
            del self._restarts[key]
            self.warm_later(spec)
            return

    async def _cancel_restart(self, key: tuple[str, str]) -> None:
        task = self._restarts.pop(key, None)
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _keys(self, engine: str) -> list[tuple[str, str]]:
        keys = [key for key, status in self._status.items() if status.spec.engine == engine]
        if not keys:
            raise EngineError(f"no engine {engine!r} was started here")
        return keys

    def _lock(self, node: str) -> asyncio.Lock:
        return self._locks.setdefault(node, asyncio.Lock())

    def _set(self, spec: LaunchSpec, state: State, detail: str = "") -> None:
        key = (spec.node, spec.name)
        old = self._status.get(key)
        since = old.since if old and old.state == state else self._clock()
        self._put(key, EngineStatus(spec, state, since, detail, old.restarts if old else 0))

    def _put(self, key: tuple[str, str], status: EngineStatus) -> None:
        old = self._status.get(key)
        self._status[key] = status
        if self._on_change is not None and (old is None or replace(old, since=0.0) != replace(status, since=0.0)):
            self._on_change(status)


async def _find(driver: Driver, spec: LaunchSpec) -> Observed | None:
    return next((found for found in await driver.observe() if found.name == spec.name), None)


async def _make_way(driver: Driver, spec: LaunchSpec) -> None:
    """Stop what has our name, then make sure that the port is free: a stranger there would answer in our place."""
    await driver.stop(spec.name)
    if spec.port and await listens(spec.host, spec.port):
        raise EngineError(
            f"engine {spec.engine!r} on node {spec.node!r} was not started: port {spec.port} is taken by "
            f"{await driver.occupant(spec.port)}. Stop that program, or write another engines.{spec.engine}.port"
        )


async def _is_itself(spec: LaunchSpec, driver: Driver) -> bool:
    """False while nobody says which models are there. Raises EngineError when it is another one: somebody took the
    port between our look and the engine's bind.
    """
    if not spec.served_model:
        return True
    answer = await request(spec.url, "/v1/models", key=spec.api_key)
    if answer is None:
        return False
    listed = answer.json()
    if not isinstance(listed, dict) or not isinstance(listed.get("data"), list):
        return True
    names = [each.get("id") for each in listed["data"] if isinstance(each, dict)]
    if spec.served_model not in names:
        await driver.stop(spec.name)
        raise EngineError(
            f"engine {spec.engine!r} on node {spec.node!r} was stopped: port {spec.port} answers for {names}, not for "
            f"{spec.served_model!r}; it is taken by {await driver.occupant(spec.port)}. Stop that program, or write "
            f"another engines.{spec.engine}.port"
        )
    return True


def _stopped_there(spec: LaunchSpec) -> str:
    return (
        f"node {spec.node!r}: its watchdog stopped it for memory, and it stays stopped. When there is room again: "
        f"lmtower restart {spec.engine}"
    )


def _never_healthy(spec: LaunchSpec, seconds: float, log: str) -> str:
    last = log.strip().splitlines()[-1:] or ["nothing"]
    return (
        f"engine {spec.engine!r} on node {spec.node!r} runs but did not answer {spec.url}{spec.health_path} within "
        f"{seconds:.0f} s; it was stopped. It said last: {last[0][:300]!r}. Full log: lmtower logs {spec.engine}"
    )
