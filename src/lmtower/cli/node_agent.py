"""``lmtower node-agent``: facts, metrics and the memory watchdog of one node."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmtower.cli.globals import Globals
from lmtower.cli.output import print_json
from lmtower.errors import Refused

if TYPE_CHECKING:
    from lmtower.config.types import Tower
    from lmtower.nodes.agent import Agent


def node_agent(
    ctx: typer.Context,
    node: Annotated[
        str | None, typer.Option(help="Name of this node in the tower file. Default: its only node.")
    ] = None,
    listen: Annotated[str, typer.Option(help="Address to serve on. Keep it private.")] = "0.0.0.0:9401",
    reserve: Annotated[
        str | None, typer.Option(help="Memory to keep free (12 GiB). Default: the tower file's.")
    ] = None,
    tower: Annotated[str | None, typer.Option(help="URL of the tower's admin listener, to hold lanes there.")] = None,
    key_file: Annotated[Path | None, typer.Option(help="File with the tower's admin key.")] = None,
    importance: Annotated[
        list[str] | None, typer.Option(help="ENGINE=NUMBER; the lowest is stopped first. Repeat it.")
    ] = None,
    models: Annotated[Path, typer.Option(help="Folder whose free space is reported.")] = Path("/"),
    watchdog: Annotated[bool, typer.Option(help="Act when memory runs out, or only report.")] = True,
    once: Annotated[bool, typer.Option(help="Print the facts as JSON and end.")] = False,
) -> None:
    """Report a GPU node's memory, pressure and GPUs, and guard its memory.

    Runs on the node. With the tower file at hand (-c) it knows reserve and importance from there;
    without it, give them as options. It needs no GPU and no tower.
    """
    options: Globals = ctx.obj
    file = options.load().tower if options.config.exists() else None
    name = _node_name(node, file)
    reserve_bytes = _reserve(reserve, name, file)
    if tower and key_file is None:
        raise Refused("--tower needs --key-file: the tower's admin.key, copied to this node.")
    address = _address(listen)
    ranks = _importance(importance or (), name, file)
    with _agent(name, reserve_bytes, ranks, tower, key_file, models, guard=watchdog and not once) as agent:
        if once:
            print_json(agent.facts())
        else:
            _run(agent, *address)


@contextmanager
def _agent(
    node: str,
    reserve_bytes: int | None,
    importance: Mapping[str, int],
    tower: str | None,
    key_file: Path | None,
    models: Path,
    *,
    guard: bool,
) -> Iterator[Agent]:
    from lmtower.nodes.agent import Agent
    from lmtower.nodes.agent_containers import Containers
    from lmtower.nodes.agent_gpu import GpuReader, Gpus
    from lmtower.nodes.agent_memory import read_memory
    from lmtower.nodes.watchdog import Policy
    from lmtower.nodes.watchdog_actor import AdminApi, Watchdog

    reader: GpuReader | None = None

    def gpus() -> Gpus:
        return reader.read() if reader else Gpus()

    containers = Containers.of_this_machine(gpus)
    reader = GpuReader.of_this_machine(containers.owners)
    if reserve_bytes is None and reader is not None:
        reserve_bytes = (12 if gpus().unified else 1) * 1024**3
    watchdog = None
    if guard and reserve_bytes:
        admin = AdminApi(tower, _key(key_file)) if tower and key_file else None
        watchdog = Watchdog(
            node, Policy(reserve_bytes), read_memory, admin, containers, importance, clock=time.monotonic
        )
    try:
        yield Agent(node, read_memory, gpus, reserve_bytes=reserve_bytes, models=models, watchdog=watchdog)
    finally:
        containers.close()


def _address(listen: str) -> tuple[str, int]:
    from lmtower.config import parse_listen

    try:
        return parse_listen(listen)
    except ValueError as exc:
        raise Refused(f"--listen: {exc}.") from exc


def _run(agent: Agent, host: str, port: int) -> None:
    from lmtower.cli.logs_setup import configure_logs
    from lmtower.nodes.agent import serve

    configure_logs()
    server = serve(agent, host, port)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    bound = f"{host}:{server.server_address[1]}"
    print(f"node agent of {agent.node!r} on {bound}, watchdog {'on' if agent.watchdog else 'off'}", flush=True)
    agent.watch(stop)
    server.shutdown()
    server.server_close()


def _node_name(given: str | None, tower: Tower | None) -> str:
    if tower is None:
        return given or "local"
    if given is None and len(tower.nodes) == 1:
        return next(iter(tower.nodes))
    if given is None:
        raise Refused(f"--node: which of {', '.join(tower.nodes) or 'no nodes'} is this?")
    if given not in tower.nodes:
        raise Refused(f"--node {given}: the tower file has only {', '.join(tower.nodes) or 'no nodes'}.")
    return given


def _reserve(given: str | None, node: str, tower: Tower | None) -> int | None:
    from lmtower.config.units import parse_size

    if given is not None:
        try:
            return parse_size(given)
        except ValueError as exc:
            raise Refused(f"--reserve: {exc}.") from exc
    return tower.nodes[node].reserve if tower and node in tower.nodes else None


def _importance(given: list[str] | tuple[()], node: str, tower: Tower | None) -> dict[str, int]:
    """Importance of the engines on this node."""
    from lmtower.cli.upstreams import upstreams_of

    here = {one.engine for one in upstreams_of(tower) if one.node == node} if tower else set()
    ranks = {name: engine.importance for name, engine in tower.engines.items() if name in here} if tower else {}
    for word in given:
        engine, equals, number = word.partition("=")
        if not equals or not number.isdigit():
            raise Refused(f"--importance {word}: write it as ENGINE=NUMBER.")
        ranks[engine] = int(number)
    return ranks


def _key(path: Path | None) -> str:
    try:
        return path.read_text("utf-8").strip() if path else ""
    except OSError as exc:
        raise Refused(f"--key-file {path}: {exc.strerror or exc}.") from exc
