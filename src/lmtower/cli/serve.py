"""``lmtower serve``: the gateway alone, on engines as they are."""

from __future__ import annotations

from typing import Annotated

import typer

from lmtower.cli.globals import Globals


def serve(
    ctx: typer.Context,
    port: Annotated[int | None, typer.Option(help="Port for clients; the admin listener takes the next one.")] = None,
) -> int:
    """Serve the gateway alone, on engines as they are: nothing is started, nothing is stopped with it.

    Ctrl-C or SIGTERM lets running requests finish; SIGHUP reads the tower file again.
    """
    from lmtower.cli.engine_key import existing_engine_key
    from lmtower.cli.logs_setup import configure_logs
    from lmtower.cli.serving import Serving, run, serve_until_stopped, with_port
    from lmtower.cli.welcome import ready_line

    options: Globals = ctx.obj
    loaded = options.load()
    overrides = with_port(loaded, port)
    if overrides:
        loaded = options.load(overrides)
    configure_logs(as_json=options.json)
    serving = Serving(options, overrides, plans={}, engine_key=existing_engine_key(options.data_dir))
    return run(lambda: serve_until_stopped(serving, loaded, ready_line))
