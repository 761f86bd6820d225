"""``lmtower up``: plan, start what is missing, then serve; engines that are child processes stop with it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lmtower.cli.globals import Globals

if TYPE_CHECKING:
    from lmtower.cli.fleet import Fleet
    from lmtower.cli.serving import Serving
    from lmtower.config import Loaded
    from lmtower.nodes.supervisor import EngineStatus


def up(
    ctx: typer.Context,
    port: Annotated[int | None, typer.Option(help="Port for clients; the admin listener takes the next one.")] = None,
) -> None:
    """Plan, start what is missing, then serve. Ctrl-C stops everything that this command started."""
    from lmtower.cli.fleet import child_plans
    from lmtower.cli.logs_setup import configure_logs
    from lmtower.cli.serving import Serving, run, with_port

    options: Globals = ctx.obj
    loaded = options.load()
    overrides = with_port(loaded, port)
    if overrides:
        loaded = options.load(overrides)
    configure_logs(as_json=options.json)
    plans = child_plans(loaded.tower)
    serving = Serving(options, overrides, {plan.name: plan for plan in plans})
    run(lambda: _up(serving, loaded))


async def _up(serving: Serving, loaded: Loaded) -> None:
    from lmtower.cli.serving import serve_until_stopped
    from lmtower.cli.welcome import welcome

    fleet = _fleet(serving, loaded)
    try:
        await fleet.start_all()
        await serve_until_stopped(serving, loaded, welcome(serving.options), fleet)
    finally:
        await fleet.close()


def _fleet(serving: Serving, loaded: Loaded) -> Fleet:
    from lmtower.cli.fleet import Fleet
    from lmtower.engines import Outside, build_specs
    from lmtower.nodes.drivers.process import ProcessDriver
    from lmtower.nodes.supervisor import Supervisor
    from lmtower.plan.types import Plan

    plan = Plan(tuple(serving.plans.values()), (), fits=True)
    specs = build_specs(plan, loaded.tower, Outside(serving.engine_key, python=sys.executable))
    nodes = dict.fromkeys(spec.node for spec in specs)
    drivers = {node: ProcessDriver(node, serving.options.data_dir, os.environ) for node in nodes}
    return Fleet(specs, Supervisor(drivers, on_change=_tell))


def _tell(status: EngineStatus) -> None:
    """Say on the terminal what an engine does."""
    detail = f": {status.detail}" if status.detail else ""
    print(f"engine {status.spec.engine} {status.state}{detail}", file=sys.stderr, flush=True)
