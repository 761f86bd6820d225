"""``lmtower restart ENGINE``: stop and start one engine, as the tower file says now; the others are not touched."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lmtower.cli.globals import Globals

if TYPE_CHECKING:
    from lmtower.config import Loaded

_LONGEST_SECONDS = 3600.0


def restart(
    ctx: typer.Context, engine: Annotated[str, typer.Argument(help="Name of the engine in the tower file.")]
) -> int:
    """Stop and start one engine and wait until it answers."""
    from lmtower.cli.lock import at_work
    from lmtower.cli.running import running_tower
    from lmtower.errors import Refused

    options: Globals = ctx.obj
    loaded = options.load()
    if engine not in loaded.tower.engines:
        known = ", ".join(loaded.tower.engines)
        raise Refused(f"there is no engine {engine!r} in the tower file; there is {known}.")
    if running_tower(options.data_dir):
        options.admin().post(f"/admin/engines/{engine}/restart", timeout=_LONGEST_SECONDS)
    else:
        _refuse_children(loaded, engine)
        with at_work(options.data_dir):
            asyncio.run(_restart(options, loaded, engine))
    print(f"{engine} is ready", file=sys.stderr)
    return 0


def _refuse_children(loaded: Loaded, engine: str) -> None:
    from lmtower.config.types import Node
    from lmtower.engines import driver_of
    from lmtower.errors import Refused

    written = loaded.tower.engines[engine]
    node = written.node or next(iter(written.nodes or loaded.tower.nodes), "local")
    if driver_of(loaded.tower.nodes.get(node, Node())) == "process":
        raise Refused(f"engine {engine!r} is a child process of the tower, and no tower runs: lmtower up.")


async def _restart(options: Globals, loaded: Loaded, engine: str) -> None:
    from lmtower.cli.up import make_fleet

    fleet = make_fleet(options, loaded)
    try:
        await fleet.restart(engine)
    finally:
        await fleet.close()
