"""``lmtower pull [ENGINE...]``: fetch images and weights ahead, so that ``up`` only has to load them."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Annotated

import typer

from lmtower.cli.globals import Globals


def pull(
    ctx: typer.Context,
    engines: Annotated[list[str] | None, typer.Argument(help="Engines to fetch for. Default: all.")] = None,
) -> int:
    """Fetch container images and model weights onto their nodes. What is there already is not fetched again."""
    from lmtower.cli.desired import desired_of, drivers_of
    from lmtower.cli.progress import Printer
    from lmtower.errors import Refused, TowerError
    from lmtower.nodes.apply import Event

    options: Globals = ctx.obj
    loaded = options.load()
    unknown = [name for name in engines or () if name not in loaded.tower.engines]
    if unknown:
        known = ", ".join(loaded.tower.engines)
        raise Refused(f"there is no engine {unknown[0]!r} in the tower file; there is {known}.")
    specs = [spec for spec in desired_of(options, loaded).specs if not engines or spec.engine in engines]
    printer = Printer()

    async def fetch() -> int:
        drivers = drivers_of(options, loaded.tower)
        failed = 0
        try:
            for spec in specs:
                print(f"{spec.engine}  {spec.image or spec.served_model} on {spec.node} ...", file=sys.stderr)
                begun = time.monotonic()
                try:
                    await drivers[spec.node].pull(
                        spec,
                        lambda at, spec=spec: printer(Event(spec.engine, spec.node, "fetch", progress=at)),  # type: ignore[misc]
                    )
                except TowerError as error:
                    print(error, file=sys.stderr)
                    failed += 1
                else:
                    print(f"{spec.engine}  is there, after {time.monotonic() - begun:.1f} s", file=sys.stderr)
        finally:
            for driver in drivers.values():
                await driver.close()
        return 1 if failed else 0

    return asyncio.run(fetch())
