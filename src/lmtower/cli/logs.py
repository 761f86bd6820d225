"""``lmtower logs ENGINE [-f]``: what an engine wrote, from its container or its log file. Needs no running tower."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Annotated

import typer

from lmtower.cli.globals import Globals


def logs(
    ctx: typer.Context,
    engine: Annotated[str, typer.Argument(help="Name of the engine in the tower file.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines.")] = 200,
) -> None:
    """Print the last lines of an engine, of each of its copies."""
    from lmtower.errors import Refused

    options: Globals = ctx.obj
    tower = options.load().tower
    if engine not in tower.engines:
        raise Refused(f"there is no engine {engine!r} in the tower file; there is {', '.join(tower.engines)}.")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_print(options, engine, follow=follow, lines=lines))


async def _print(options: Globals, engine: str, *, follow: bool, lines: int) -> None:
    from lmtower.cli.desired import driver_for
    from lmtower.config.types import Node
    from lmtower.engines.spec import NAME_PREFIX

    tower = options.load().tower
    written = tower.engines[engine]
    nodes = written.nodes or ((written.node,) if written.node else (next(iter(tower.nodes), "local"),))
    for name in nodes:
        driver = driver_for(options, name, tower.nodes.get(name, Node()))
        try:
            if len(nodes) > 1:
                print(f"--- {engine} on {name}")
            if follow:
                async for line in driver.follow(NAME_PREFIX + engine, lines):
                    print(line, flush=True)
            elif text := await driver.logs(NAME_PREFIX + engine, lines):
                print(text.rstrip("\n"))
            else:
                print(
                    f"engine {engine!r} has written nothing on {name}; did it ever start? lmtower diff", file=sys.stderr
                )
        finally:
            await driver.close()
