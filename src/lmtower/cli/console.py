"""``lmtower console``: the web console, a process of its own beside the tower."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmtower.cli.globals import Globals

if TYPE_CHECKING:
    from lmtower.config.types import Tower
    from lmtower.console.settings import Settings


def console(
    ctx: typer.Context,
    listen: Annotated[str, typer.Option(help="Address of the console.")] = "127.0.0.1:8083",
    host: Annotated[list[str] | None, typer.Option(help="Host name that it answers to; may be repeated.")] = None,
    admin: Annotated[str | None, typer.Option(help="URL of the admin listener. Default: this tower's.")] = None,
    gateway: Annotated[str | None, typer.Option(help="URL of the gateway. Default: this tower's.")] = None,
) -> None:
    """Overview, personas to try, clients, engines & memory, requests and stores in a browser. Log in with admin.key."""
    from lmtower.config import parse_listen
    from lmtower.errors import Refused

    if any(find_spec(name) is None for name in ("starlette", "uvicorn", "jinja2")):
        raise Refused("the console is not installed: pip install 'lmtower[console]'.")
    try:
        address, port = parse_listen(listen)
    except ValueError as exc:
        raise Refused(f"--listen: {exc}.") from None
    _serve(settings(ctx.obj, admin, gateway, frozenset(host or ())), address, port)


def _serve(chosen: Settings, host: str, port: int) -> None:
    import uvicorn

    from lmtower.console.app import application

    app = application(chosen)
    print(f"console  http://{host if host != '0.0.0.0' else 'localhost'}:{port}", flush=True)
    print(f"         log in with the key in {chosen.data_dir / 'admin.key'}", flush=True)
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, server_header=False)


def settings(options: Globals, admin: str | None, gateway: str | None, hosts: frozenset[str]) -> Settings:
    """The running tower's addresses (``tower.json``) before those of the tower file."""
    from lmtower.cli.managed import MANAGED, PROMETHEUS_PORT
    from lmtower.config import parse_listen
    from lmtower.console.settings import Settings

    tower = options.load().tower
    running = _running(options.data_dir)
    scheme = "https" if tower.gateway.tls else "http"
    prometheus = tower.observability.prometheus
    if prometheus == MANAGED:
        prometheus = f"http://127.0.0.1:{PROMETHEUS_PORT}"

    def url(listen: str, scheme: str = "http") -> str:
        host, port = parse_listen(listen)
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    return Settings(
        admin_url=admin or url(running.get("admin", tower.gateway.admin)),
        gateway_url=(gateway or url(running.get("listen", tower.gateway.listen), scheme)).rstrip("/"),
        data_dir=options.data_dir,
        read=lambda: options.load().tower,
        plan=lambda: _plan(options),
        local_memory=dict if admin else lambda: _local_memory(options.load().tower),
        stores_url=url(running.get("stores", tower.stores.listen)),
        prometheus_url=prometheus,
        hosts=hosts | frozenset(tower.gateway.hosts),
        # the gateway's certificate has its public name, not this machine's loopback address
        verify=gateway is not None,
    )


def _plan(options: Globals) -> dict[str, Any]:
    from lmtower.cli.measured import Known
    from lmtower.cli.plan import as_json, planned

    known = Known.read(options.data_dir)
    return as_json(planned(options.load(), options.environ, offline=True, known=known)[0])


def _local_memory(tower: Tower) -> dict[str, dict[str, float]]:
    """This machine, under the name of every node that it is."""
    from lmtower.nodes.agent_memory import read_memory

    memory = read_memory()
    names = [name for name, node in tower.nodes.items() if node.address == "local"] or ["local"]
    return {name: {"total_bytes": memory.total_bytes, "available_bytes": memory.available_bytes} for name in names}


def _running(data_dir: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads((data_dir / "tower.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found
