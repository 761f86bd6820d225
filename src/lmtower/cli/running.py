"""A tower that runs already: is there one, and how a second ``up`` changes it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmtower.cli.globals import Globals
from lmtower.errors import AdminError
from lmtower.processes import runs

if TYPE_CHECKING:
    from lmtower.config import Loaded
    from lmtower.nodes.diff import Step

_LONGEST_START_SECONDS = 3600.0


def running_tower(data_dir: Path) -> dict[str, Any] | None:
    """What the tower of this data folder wrote down, if it still runs."""
    try:
        state: dict[str, Any] = json.loads((data_dir / "tower.json").read_text("utf-8"))
        return state if runs(int(state["pid"]), str(state["began"])) else None
    except (OSError, ValueError, KeyError):
        return None


def change_running_tower(options: Globals, loaded: Loaded, *, yes: bool) -> int:
    """Bring the running tower and its engines to what the file says now; nothing changed means nothing is done."""
    from lmtower.cli.up import confirm, make_fleet

    async def look() -> tuple[tuple[Step, ...], dict[str, str]]:
        fleet = make_fleet(options, loaded)
        try:
            return await fleet.diff()
        finally:
            await fleet.close()

    steps, unreachable = asyncio.run(look())
    for reason in unreachable.values():
        print(reason, file=sys.stderr)
    admin = options.admin()
    if all(step.action == "keep" for step in steps):
        admin.post("/admin/reload")
        print("lmtower runs already, and every engine is as the file says.")
        return 1 if unreachable else 0
    confirm(steps, yes=yes)
    for step in steps:
        if step.action == "stop":
            admin.post(f"/admin/engines/{step.engine}/stop")
    admin.post("/admin/reload")
    failed = False
    for engine in dict.fromkeys(step.engine for step in steps if step.action in ("start", "replace")):
        print(f"{engine}  starts ...", file=sys.stderr, flush=True)
        try:
            admin.post(f"/admin/engines/{engine}/start", timeout=_LONGEST_START_SECONDS)
        except AdminError as error:
            print(error, file=sys.stderr)
            failed = True
        else:
            print(f"{engine}  is ready", file=sys.stderr, flush=True)
    return 1 if failed or unreachable else 0
