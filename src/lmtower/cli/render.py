"""``lmtower render``: the tower file as files that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmtower.cli.files import emit
from lmtower.cli.globals import Globals, group

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


def _header(verb: str) -> str:
    return f"Written by `lmtower render {verb}` from the tower file. Change that instead."
