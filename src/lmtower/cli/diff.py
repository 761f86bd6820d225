"""``lmtower diff``: what ``up`` would do. Exit code 0: everything is as the file says; 1: something would change."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict

import typer

from lmtower.cli.globals import Globals


def diff(ctx: typer.Context) -> int:
    """Print what `lmtower up` would start, stop, replace and keep. Touches nothing."""
    from lmtower.cli.measured import measure
    from lmtower.cli.output import print_json
    from lmtower.cli.progress import diff_text
    from lmtower.cli.up import make_fleet

    options: Globals = ctx.obj
    loaded = options.load()

    async def look() -> int:
        await measure(options, loaded.tower)
        fleet = make_fleet(options, loaded)
        try:
            steps, unreachable = await fleet.diff()
        finally:
            await fleet.close()
        for reason in unreachable.values():
            print(reason, file=sys.stderr)
        if options.json:
            print_json([{k: v for k, v in asdict(step).items() if k != "spec"} for step in steps])
        else:
            print(diff_text(steps))
        return 1 if unreachable or any(step.action != "keep" for step in steps) else 0

    return asyncio.run(look())
