"""``lmtower render``: the tower file as files that other programs read."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmtower.cli.files import as_text, emit
from lmtower.cli.globals import Globals, group
from lmtower.config import parse_listen
from lmtower.errors import Refused

if TYPE_CHECKING:
    from lmtower.engines import LaunchSpec

app = group()

Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write into. Default: print.")]


@app.command()
def prometheus(ctx: typer.Context, out: Out = None) -> None:
    """Scrape configuration, recording rules and alerts. Targets come from the running tower (http_sd)."""
    from lmtower.telemetry import prometheus as rendering

    options: Globals = ctx.obj
    emit(rendering.files(options.load().tower), out, _header("prometheus"))


@app.command()
def grafana(
    ctx: typer.Context,
    out: Out = None,
    url: Annotated[str | None, typer.Option("--prometheus", help="URL of Prometheus as Grafana sees it.")] = None,
) -> None:
    """Four dashboards and the provisioning files that put them in place."""
    from lmtower.telemetry import grafana as rendering

    options: Globals = ctx.obj
    written = options.load().tower.observability.prometheus
    known = written if written and written != "managed" else "http://127.0.0.1:9090"
    emit(rendering.files(url or known), out, _header("grafana"))


@app.command()
def compose(ctx: typer.Context, out: Out = None) -> None:
    """One compose file per node; engines start one after the other. Needs nothing of ours on the node."""
    from lmtower.render import compose as rendering

    emit(rendering.files(_some_specs(ctx.obj)), out, _header("compose"))


@app.command()
def kubernetes(
    ctx: typer.Context,
    out: Out = None,
    namespace: Annotated[str, typer.Option(help="Namespace of everything.")] = "lmtower",
    image: Annotated[str | None, typer.Option(help="Image of the tower. Default: lmtower:VERSION.")] = None,
    storage_class: Annotated[str | None, typer.Option(help="Class of the claims. Default: the cluster's.")] = None,
    models_size: Annotated[str, typer.Option(help="Size of each engine's claim for weights.")] = "200Gi",
) -> None:
    """Deployments with GPU limits and probes, Services, claims, ServiceMonitors; for engines and the tower."""
    from lmtower import __version__
    from lmtower.render import kubernetes as rendering

    cluster = rendering.Cluster(
        image or f"lmtower:{__version__}", namespace, models_size=models_size, storage_class=storage_class
    )
    emit(rendering.files(_some_specs(ctx.obj), cluster), out, _header("kubernetes"))


@app.command()
def systemd(
    ctx: typer.Context,
    out: Out = None,
    up: Annotated[
        bool, typer.Option("--up", help="The tower starts the engines (lmtower up), not a compose unit on each node.")
    ] = False,
) -> None:
    """Units for the tower, for each node's engines and for the node agents."""
    from lmtower.cli.specs import specs_of
    from lmtower.render import systemd as rendering

    options: Globals = ctx.obj
    loaded = options.load()
    tower, specs = loaded.tower, specs_of(options, loaded)
    importance = {name: engine.importance for name, engine in tower.engines.items()}
    reserves = {name: node.reserve for name, node in tower.nodes.items()} | {
        spec.node: None for spec in specs if spec.node not in tower.nodes
    }
    admin = f"http://{tower.gateway.admin}"
    host = parse_listen(tower.gateway.admin)[0]
    away = [name for name, node in tower.nodes.items() if node.address != "local"]
    if away and host in ("127.0.0.1", "::1", "localhost"):
        print(
            f"gateway.admin: {tower.gateway.admin} is this machine's own, so the watchdog on {', '.join(away)} cannot "
            "tell the tower to hold work. Write a private address: gateway: {admin: 10.0.0.2:8081}",
            file=sys.stderr,
        )
    emit(rendering.files(specs, reserves, importance, admin, up=up), out)


@app.command("cloud-init")
def cloud_init(
    ctx: typer.Context,
    out: Out = None,
    requirement: Annotated[
        str | None, typer.Option(help="What pip installs. Default: lmtower at this version.")
    ] = None,
    ssh_key: Annotated[list[str] | None, typer.Option(help="Public key that may log in; repeat it.")] = None,
    hostname: Annotated[str, typer.Option(help="Name of the VM.")] = "lmtower",
) -> None:
    """User-data for the tower VM: it installs lmtower and serves this tower file."""
    from lmtower import __version__
    from lmtower.render import cloud_init as rendering

    options: Globals = ctx.obj
    loaded = options.load()
    text = options.config.read_text("utf-8")
    folder = options.config.parent.resolve()
    files = {
        str(path.resolve().relative_to(folder)): path.read_text("utf-8")
        for path in loaded.watched_files
        if path.resolve() != options.config.resolve() and path.resolve().is_relative_to(folder)
    }
    document = rendering.user_data(
        text,
        files,
        requirement=requirement or f"lmtower=={__version__}",
        secrets=sorted(set(re.findall(r"\benv:([A-Za-z_][A-Za-z0-9_]*)", text))),
        ssh_keys=ssh_key or (),
        hostname=hostname,
    )
    emit({"user-data": rendering.HEADER + "\n" + as_text("user-data.yaml", document, _header("cloud-init"))}, out)


@app.command()
def litellm(ctx: typer.Context, out: Out = None) -> None:
    """Personas as a LiteLLM config.yaml. What LiteLLM has no word for is listed on stderr."""
    from lmtower import recipes
    from lmtower.cli.upstreams import upstreams_of
    from lmtower.render import litellm as rendering

    options: Globals = ctx.obj
    tower = options.load().tower
    upstreams = upstreams_of(tower, engine_key="set-me")
    served = {
        name: rendering.Served(
            tuple(one.url for one in upstreams if one.engine == name),
            engine.model,
            next(recipes.get(one.recipe) for one in upstreams if one.engine == name),
            next((one.max_model_len for one in upstreams if one.engine == name), None),
            f"{re.sub(r'[^A-Z0-9]', '_', name.upper())}_KEY"
            if any(one.api_key for one in upstreams if one.engine == name)
            else None,
        )
        for name, engine in tower.engines.items()
    }
    rendered = rendering.render(tower, served)
    emit({"config.yaml": rendered.document}, out, _header("litellm"))
    for line in rendered.lost:
        print(f"not carried: {line}", file=sys.stderr)


def _some_specs(options: Globals) -> tuple[LaunchSpec, ...]:
    from lmtower.cli.specs import specs_of

    specs = specs_of(options, options.load())
    if not specs:
        raise Refused("every engine is external (url:): there is nothing to start, so nothing to render.")
    return specs


def _header(verb: str) -> str:
    return f"Written by `lmtower render {verb}` from the tower file. Change that instead."
