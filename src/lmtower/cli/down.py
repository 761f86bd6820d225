"""``lmtower down``: stop the tower and every engine that it started; nothing of ours keeps running."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from lmtower.cli.globals import Globals

if TYPE_CHECKING:
    from lmtower.cli.globals import Globals as Options
    from lmtower.config.types import Tower

_LONGEST_SECONDS = 60.0


def down(
    ctx: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> int:
    """Stop the gateway and all engines of the tower file's nodes. Weights, caches, keys and usage stay."""
    from lmtower.errors import Refused

    options: Globals = ctx.obj
    tower = options.load().tower
    if not yes and sys.stdin.isatty() and input("Stop the tower and its engines? [y/N] ").strip().lower() != "y":
        raise Refused("nothing was touched.")
    stopped = stop_tower(options)
    engines, unreachable = asyncio.run(_stop_engines(options, tower))
    for reason in unreachable.values():
        print(reason, file=sys.stderr)
    if "managed" in (tower.observability.prometheus, tower.observability.grafana):
        from lmtower.cli import managed

        parts = managed.stop()
        print("\n".join(parts))
        engines += parts
    if not stopped and not engines and not unreachable:
        print("nothing runs.")
    return 1 if unreachable else 0


def stop_tower(options: Options) -> bool:
    """SIGTERM to the tower of this data folder, even one that is still starting, and wait until it is gone.

    False when there is none.
    """
    from lmtower.cli.lock import who_works
    from lmtower.cli.running import running_tower

    def process() -> int | None:
        state = running_tower(options.data_dir)
        return int(state["pid"]) if state else who_works(options.data_dir)

    pid = process()
    if not pid:
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _LONGEST_SECONDS
    while process() is not None and time.monotonic() < deadline:
        time.sleep(0.1)
    print(f"tower stopped (process {pid})")
    return True


async def _stop_engines(options: Options, tower: Tower) -> tuple[list[str], dict[str, str]]:
    from lmtower.cli.desired import drivers_of, observe

    drivers = drivers_of(options, tower)
    try:
        found, unreachable = await observe(drivers)
        for each in found:
            await drivers[each.node].stop(each.name)
            print(f"{each.engine} stopped on {each.node}")
    finally:
        for driver in drivers.values():
            await driver.close()
    return [each.engine for each in found], unreachable
