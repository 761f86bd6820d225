"""``lmtower up``: plan, bring every node to what the file says, then serve.

A second ``up`` changes only what has changed. When a tower runs on this data folder already, the change is carried out
by that tower, because it watches the engines.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from lmtower.cli.globals import Globals

if TYPE_CHECKING:
    from lmtower.cli.fleet import Fleet
    from lmtower.cli.planned import PlannedServing
    from lmtower.config import Loaded
    from lmtower.config.types import Tower
    from lmtower.nodes.diff import Step
    from lmtower.nodes.supervisor import EngineStatus


def up(
    ctx: typer.Context,
    port: Annotated[int | None, typer.Option(help="Port for clients; the admin listener takes the next one.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before running engines are touched.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Serve in the background.")] = False,
) -> int:
    """Plan, start what is missing, replace what has changed, then serve.

    Ctrl-C stops the gateway and the engines that are its child processes; containers run on until `lmtower down`.
    """
    from lmtower.cli.desired import desired_of
    from lmtower.cli.detached import start_detached
    from lmtower.cli.engine_key import engine_key
    from lmtower.cli.lock import at_work
    from lmtower.cli.logs_setup import configure_logs
    from lmtower.cli.measured import measure
    from lmtower.cli.planned import PlannedServing
    from lmtower.cli.running import change_running_tower, running_tower
    from lmtower.cli.serving import run, with_port

    options: Globals = ctx.obj
    loaded = options.load()
    overrides = with_port(loaded, port)
    if overrides:
        loaded = options.load(overrides)
    if running_tower(options.data_dir):
        asyncio.run(measure(options, loaded.tower, fetch=True))
        return change_running_tower(options, loaded, yes=yes)
    if detach:
        return start_detached(options, port, yes=yes)
    configure_logs(as_json=options.json)
    with at_work(options.data_dir):
        asyncio.run(measure(options, loaded.tower, fetch=True))
        wanted = desired_of(options, loaded)
        serving = PlannedServing(options, overrides, dict(wanted.rows), engine_key(options.data_dir))
        return run(lambda: _up(serving, loaded, yes=yes))


async def _up(serving: PlannedServing, loaded: Loaded, *, yes: bool) -> None:
    from lmtower.cli.serving import serve_until_stopped
    from lmtower.cli.welcome import welcome
    from lmtower.errors import EngineError, NodeError

    fleet = make_fleet(serving.options, loaded)
    try:
        steps, unreachable = await fleet.diff()
        for reason in unreachable.values():
            print(reason, file=sys.stderr)
        confirm(steps, yes=yes)
        outcome = await fleet.apply(steps)
        await fleet.await_return(unreachable)
        for reason in await silent_externals(loaded.tower):
            print(reason, file=sys.stderr)
        if not any(step.action in ("keep",) for step in steps) and not outcome.started:
            if outcome.failed:
                raise EngineError("no engine could be started: see above.")
            if unreachable and not steps:
                raise NodeError("no node can be reached; nothing was started.")
        await _observe(loaded, serving.options)
        serving = replace(serving, prime=fleet.prime)
        await serve_until_stopped(serving, loaded, welcome(serving.options), fleet)
    finally:
        await fleet.close()


async def _observe(loaded: Loaded, options: Globals) -> None:
    """Start what the tower file wants managed. That it fails is told, and the tower serves all the same."""
    from lmtower.errors import NodeError

    wanted = loaded.tower.observability
    if "managed" not in (wanted.prometheus, wanted.grafana):
        return
    from lmtower.cli import managed

    try:
        lines = await asyncio.to_thread(managed.start, loaded.tower, options.data_dir)
    except NodeError as error:
        lines = [str(error)]
    print("\n".join(lines), file=sys.stderr, flush=True)


async def silent_externals(tower: Tower) -> list[str]:
    """What to say of engines that others run and that do not answer now; the gateway goes on asking them."""
    from lmtower.cli.upstreams import upstreams_of
    from lmtower.engines import LaunchSpec
    from lmtower.errors import EngineError
    from lmtower.nodes.drivers.external import ExternalDriver

    driver, reasons = ExternalDriver(), []
    for upstream in upstreams_of(tower):
        if upstream.runtime != "external":
            continue
        secrets = {"VLLM_API_KEY": upstream.api_key} if upstream.api_key else {}
        spec = LaunchSpec(upstream.engine, "external", "external", external_url=upstream.url, secrets=secrets)
        try:
            await driver.start(spec)
        except EngineError as error:
            reasons.append(str(error))
    return reasons


def make_fleet(options: Globals, loaded: Loaded) -> Fleet:
    """The fleet of a tower file, with a driver for every node. The file is read again whenever it is asked."""
    from lmtower.cli.desired import desired_of, drivers_of
    from lmtower.cli.fleet import Fleet
    from lmtower.cli.progress import Printer
    from lmtower.nodes.supervisor import Supervisor

    drivers = drivers_of(options, loaded.tower)
    supervisor = Supervisor(drivers, on_change=tell, on_return=lambda spec: fleet.warm(spec))
    fleet = Fleet(lambda: desired_of(options, options.load()), drivers, supervisor, Printer())
    return fleet


def confirm(steps: tuple[Step, ...], *, yes: bool) -> None:
    """Print the diff; ask when a running engine would be touched. Raises Refused when nobody says yes."""
    from lmtower.cli.progress import diff_text
    from lmtower.errors import Refused

    if all(step.action == "keep" for step in steps):
        return
    print(diff_text(steps), file=sys.stderr, flush=True)
    if yes or not any(step.touches for step in steps):
        return
    if not sys.stdin.isatty():
        raise Refused("running engines would be stopped or replaced; nothing was touched. Add --yes to do it.")
    if input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise Refused("nothing was touched.")


def tell(status: EngineStatus) -> None:
    """Say on the terminal when an engine ends, falls silent or comes back by itself; starts tell their phases."""
    came_back = status.state == "ready" and status.restarts > 0
    words = ("it ended", "it runs but") if status.state == "failed" else ("it ended", "it runs but", "node ")
    if came_back or status.detail.startswith(words):
        detail = f": {status.detail}" if status.detail else ""
        print(f"engine {status.spec.engine} {status.state}{detail}", file=sys.stderr, flush=True)
