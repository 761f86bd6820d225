"""The gateway as a whole: listeners, snapshots, reload, shutdown."""

from __future__ import annotations

import asyncio
import signal
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from lmtower.config import Stamp, Tower, stamp
from lmtower.errors import ConfigError, NodeError, TowerError
from lmtower.gateway import certificate, routes, snapshot
from lmtower.gateway.admin import Admin, EngineControl
from lmtower.gateway.dispatch import Dispatcher
from lmtower.gateway.engine import Engine
from lmtower.gateway.fixed import needs_restart
from lmtower.gateway.handler import Handler
from lmtower.gateway.knowledge import Knowledge
from lmtower.gateway.memory import give_back, tune_collector
from lmtower.gateway.outbox import Outbox
from lmtower.gateway.relay import Watch
from lmtower.gateway.server import Server
from lmtower.gateway.snapshot import Snapshot
from lmtower.gateway.status import tower_state
from lmtower.gateway.upstreams import Upstream
from lmtower.ledger import Ledger, UsageRecord
from lmtower.logs import get_logger
from lmtower.processes import this_process
from lmtower.telemetry.families import RELOADS
from lmtower.telemetry.lag import LoopLag
from lmtower.telemetry.metrics import Metrics
from lmtower.telemetry.tracing import Tracer

log = get_logger(__name__)
RECENT = 500
WATCH_SECONDS = 1.0


class Configuration(NamedTuple):
    """What the CLI hands the gateway, at start and at every reload."""

    tower: Tower
    upstreams: Sequence[Upstream]
    files: Mapping[Path, Stamp] = MappingProxyType({})
    """Files whose change means a reload, as they were when they were read."""


class Gateway:
    """One tower process. ``configure`` reads the tower file again; it raises ConfigError for a bad one."""

    def __init__(
        self,
        configuration: Configuration,
        ledger: Ledger,
        data_dir: Path,
        *,
        admin_key: str,
        configure: Callable[[], Configuration] | None = None,
        control: EngineControl | None = None,
        version: str = "",
    ) -> None:
        self.clock = time.monotonic
        self.ledger = ledger
        self.data_dir = data_dir
        self.recent: deque[UsageRecord] = deque(maxlen=RECENT)
        self.reload_error: str | None = None
        self.loaded_at = time.time()
        self.lag = LoopLag()
        self.metrics = Metrics(
            configuration.tower.observability.max_clients, lambda: tower_state(self), version=version
        )
        self.watch = Watch(self.clock, self._live_engines)
        self.draining = False
        self._absent = _nothing_is_known if control is None else control.absent
        self._configure = configure
        self._files: dict[Path, Stamp] = {}
        self.started = configuration.tower
        self._tls: ssl.SSLContext | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._retiring: set[Engine] = set()
        """Engines that no snapshot names any more, with requests still running."""
        self.snapshot: Snapshot = self._build(1, configuration, {})
        dispatcher = Dispatcher(self.watch, Outbox(ledger.flush), self.metrics, self.clock)
        self.knowledge = Knowledge(configuration.tower.stores.listen, data_dir)
        self.handler = Handler(
            self.snapshot, ledger, self.metrics, dispatcher, self.knowledge, self.clock, self.recent.append
        )
        if configuration.tower.observability.tracing is not None:
            self.handler.tracer = Tracer.to(configuration.tower.observability.tracing, version)
        settings = configuration.tower.gateway
        self.server = Server(
            self.handler,
            routes.dialect_of,
            max_body=settings.max_body,
            door=self.handler.door,
            cors=self.handler.cors,
        )
        self.admin = Admin(self, admin_key, control)
        self.admin_server = Server(self.admin, lambda _: "openai", max_body=1024**2)

    # -- start and stop --------------------------------------------------------------------------------------

    async def start(self) -> tuple[tuple[str, int], tuple[str, int]]:
        """Listen. Returns the addresses of clients' and admin listener. Raises NodeError when one is taken."""
        settings = self.snapshot.tower.gateway
        await self.ledger.start()
        for engine in self.snapshot.engines.values():
            engine.start()
        if settings.tls is not None:
            self._tls = certificate.context_of(settings.tls)
        listen = await _listen(self.server, settings.listen, "gateway.listen", self._tls)
        admin = await _listen(self.admin_server, settings.admin, "gateway.admin", None)
        self.lag.start()
        self._tasks = [
            asyncio.create_task(self.watch.run(lambda: self.snapshot.tower.gateway)),
            asyncio.create_task(self._watch_files()),
            asyncio.create_task(give_back(lambda: self.server.busy > 0)),
        ]
        _write_state(self.data_dir, listen, admin, self.snapshot.tower.stores.listen)
        return listen, admin

    async def stop(self) -> None:
        """Refuse new work, let streams finish for ``gateway.shutdown_grace``, close everything."""
        self.draining = self.handler.draining = True
        grace = self.snapshot.tower.gateway.shutdown_grace
        if self.server.busy:
            log.info("shutting down: running requests may finish", requests=self.server.busy, seconds=grace)
        await self.server.close(grace)
        await self.admin_server.close(0.5)
        if self.handler.tracer is not None:
            await asyncio.to_thread(self.handler.tracer.close)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.lag.stop()
        self.knowledge.close()
        for engine in self.snapshot.engines.values():
            engine.close()
        await self.ledger.close()
        (self.data_dir / "tower.json").unlink(missing_ok=True)

    # -- snapshots -------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Read the tower file again and swap the snapshot. A bad file keeps the old one; raises its TowerError."""
        if self._configure is None:
            return
        files = {path: stamp(path) for path in self._files}
        try:
            configuration = self._configure()
            files |= configuration.files
            old = self.snapshot
            tls = configuration.tower.gateway.tls
            if self._tls is not None and tls is not None:
                certificate.renew(self._tls, tls)
            self.snapshot = self.handler.snapshot = self._build(old.version + 1, configuration, old.engines)
        except TowerError as exc:
            self._files = files | dict(exc.watched if isinstance(exc, ConfigError) else {})
            self.reload_error = str(exc)
            self.metrics.count(RELOADS, "failed")
            log.error("reload failed, the old configuration still serves", reason=str(exc))
            raise
        self.reload_error = None
        self.loaded_at = time.time()
        self.metrics.count(RELOADS, "ok")
        self.server.max_body = configuration.tower.gateway.max_body
        self.server.heads.clear()
        for name, engine in self.snapshot.engines.items():
            if old.engines.get(name) is not engine:
                engine.start()
        for name, engine in old.engines.items():
            if self.snapshot.engines.get(name) is not engine:
                self._tasks.append(asyncio.create_task(self._retire(engine)))
        log.info("reloaded", version=self.snapshot.version)
        if self.restart:
            log.warning("changed, but needs a restart", keys=self.restart)

    @property
    def restart(self) -> tuple[str, ...]:
        """Keys of the tower file that take effect only at the next start."""
        return needs_restart(self.started, self.snapshot.tower)

    def _build(self, version: int, configuration: Configuration, old: Mapping[str, Engine]) -> Snapshot:
        engines: dict[str, Engine] = {}
        for name in configuration.tower.engines:
            upstreams = tuple(u for u in configuration.upstreams if u.engine == name)
            kept = old.get(name)
            if kept is not None and kept.upstreams == upstreams:
                engines[name] = kept
            elif upstreams:
                engines[name] = Engine(upstreams, self.clock, self._absent)
        self._files = dict(configuration.files)
        tower = configuration.tower
        self.ledger.configure(tower.limits, {name: p.limits for name, p in tower.personas.items()})
        built = snapshot.build(version, configuration.tower, configuration.upstreams, engines, int(time.time()))
        self.metrics.set_ttft_targets({p.name: p.ttft_target for p in built.personas.values() if p.ttft_target})
        return built

    def _live_engines(self) -> tuple[Engine, ...]:
        return (*self.snapshot.engines.values(), *self._retiring)

    async def _retire(self, engine: Engine) -> None:
        """Close an engine that no snapshot names any more, after its last request."""
        self._retiring.add(engine)
        await engine.admission.idle()
        self._retiring.discard(engine)
        engine.close()

    async def _watch_files(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if any(stamp(path) != seen for path, seen in self._files.items()):
                try:
                    self.reload()
                except TowerError:
                    continue


async def serve(gateway: Gateway, on_started: Callable[[tuple[str, int], tuple[str, int]], None] | None = None) -> None:
    """Run until SIGINT or SIGTERM, whose second one waits for nobody; SIGHUP reloads. Everything is closed when it
    returns."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def end() -> None:
        if stop.is_set():
            gateway.server.hurry()
        stop.set()

    def hang_up() -> None:
        try:
            gateway.reload()
        except TowerError:
            log.warning("still serving", version=gateway.snapshot.version)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    try:
        listen, admin = await gateway.start()
        if on_started is not None:
            on_started(listen, admin)
        tune_collector()
        await stop.wait()
    finally:
        await gateway.stop()


async def _listen(server: Server, address: str, key: str, tls: ssl.SSLContext | None) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    try:
        return await server.listen(host.strip("[]") or "0.0.0.0", int(port), tls)
    except OSError as exc:
        raise NodeError(f"{key}: cannot listen on {address}: {exc.strerror or exc}. Is another tower running?") from exc


def _nothing_is_known(url: str) -> bool:
    """Nobody here starts engines: whoever answers is the engine."""
    return False


def _write_state(data_dir: Path, listen: tuple[str, int], admin: tuple[str, int], stores: str) -> None:
    """Tell the CLI where this tower is."""
    state = {
        **this_process(),
        "listen": f"{listen[0]}:{listen[1]}",
        "admin": f"{admin[0]}:{admin[1]}",
        "stores": stores,
        "started_at": time.time(),
    }
    (data_dir / "tower.json").write_bytes(msgspec.json.encode(state))
