"""One tower process: data folder, ledger, gateway and, for ``up``, its engines, from start to clean end."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmtower import __version__
from lmtower.cli.globals import Globals
from lmtower.cli.kept import kept_secret
from lmtower.cli.upstreams import upstreams_of
from lmtower.config import Loaded, parse_listen
from lmtower.errors import LedgerError
from lmtower.gateway import Configuration, Gateway, serve, tune_allocator
from lmtower.ledger import Ledger
from lmtower.stores import launch as stores

if TYPE_CHECKING:
    from lmtower.plan.types import EnginePlan

MOST_FILES = 65_536


@dataclass(frozen=True, slots=True)
class Started:
    """What can be told to a person once clients can connect."""

    tower: Loaded
    listen: tuple[str, int]
    admin: tuple[str, int]
    first_key: str | None
    """The key that was made because there was none; shown once."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How this call reads its tower file, at the start and at every reload."""

    options: Globals
    overrides: Mapping[str, Any]
    plans: Mapping[str, EnginePlan]
    engine_key: str | None = None

    def configuration(self, loaded: Loaded | None = None) -> Configuration:
        """The tower file as the gateway takes it, read again unless it is given. Raises ConfigError."""
        loaded = loaded or self.options.load(self.overrides)
        return Configuration(
            loaded.tower, upstreams_of(loaded.tower, self.plans, self.engine_key), loaded.watched_files
        )


def with_port(loaded: Loaded, port: int | None) -> dict[str, Any]:
    """Overrides that move the tower to another port; admin listener and store service follow on the next ones."""
    if port is None:
        return {}
    gateway = loaded.tower.gateway
    moved = {"gateway.listen": (gateway.listen, port), "gateway.admin": (gateway.admin, port + 1 if port else 0)}
    if port:  # the service's port has to be known beforehand
        moved["stores.listen"] = (loaded.tower.stores.listen, port + 2)
    hosts = {key: parse_listen(listen)[0] for key, (listen, _) in moved.items()}
    return {
        key: f"[{hosts[key]}]:{to}" if ":" in hosts[key] else f"{hosts[key]}:{to}" for key, (_, to) in moved.items()
    }


def run(main: Callable[[], Awaitable[None]]) -> int:
    """Run one tower on uvloop until it is done. Returns the exit code: 1 when it was interrupted before it served."""
    import uvloop

    tune_allocator()
    raise_file_limit()
    # until the gateway listens for it, SIGTERM ends a start as Ctrl-C does: children are stopped, links are closed
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_as_coroutine(main))
        except KeyboardInterrupt:
            print(
                "stopped before it was ready. Containers that were loading go on: lmtower up goes on from there, "
                "lmtower down ends them.",
                file=sys.stderr,
            )
            return 1
    return 0


def raise_file_limit() -> None:
    """Allow as many open files as the system does, up to 65,536: a stream needs two, and shells give programs 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # some systems have a lower limit of their own
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _as_coroutine(main: Callable[[], Awaitable[None]]) -> None:
    await main()


async def serve_until_stopped(
    serving: Serving, loaded: Loaded, on_started: Callable[[Started], None], control: Any = None
) -> None:
    """Open the ledger and serve until a signal; everything is closed when this returns."""
    data_dir = serving.options.data_dir
    ledger = await asyncio.to_thread(Ledger.open, data_dir, loaded.tower.database, loaded.tower.redis)
    first_key = await asyncio.to_thread(ledger.first_key, "first")
    gateway = Gateway(
        serving.configuration(loaded),
        ledger,
        data_dir,
        admin_key=admin_key(data_dir),
        configure=serving.configuration,
        control=control,
        version=__version__,
    )
    service: list[asyncio.Task[None]] = []

    def started(listen: tuple[str, int], admin: tuple[str, int]) -> None:
        on_started(Started(loaded, listen, admin, first_key))
        if stores.wanted(loaded.tower):
            service.append(asyncio.create_task(_serve_stores(ledger, serving, loaded, listen)))

    try:
        await serve(gateway, started)
    finally:
        for task in service:
            task.cancel()
        await asyncio.gather(*service, return_exceptions=True)


async def _serve_stores(ledger: Ledger, serving: Serving, loaded: Loaded, listen: tuple[str, int]) -> None:
    from lmtower.cli.store_service import StoreService, store_key

    data_dir = serving.options.data_dir.absolute()
    host = "127.0.0.1" if listen[0] in ("0.0.0.0", "::") else listen[0]
    scheme = "https" if loaded.tower.gateway.tls is not None else "http"
    key = await asyncio.to_thread(store_key, ledger, data_dir)
    gateway = f"{scheme}://{host}:{listen[1]}"
    argv = stores.command(loaded.path.absolute(), data_dir, gateway, loaded.tower.stores.listen)
    await StoreService(argv, key, data_dir / "logs" / "stores.log").run()


def admin_key(data_dir: Path) -> str:
    """The admin key of this data folder; made on the first start, readable by its owner only."""
    try:
        return kept_secret(data_dir / "admin.key")
    except OSError as exc:
        raise LedgerError(
            f"cannot use the data folder {data_dir}: {exc.strerror or exc}. Name another with --data-dir."
        ) from exc
