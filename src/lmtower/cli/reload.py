"""``lmtower reload``: make the running tower read its file again."""

from __future__ import annotations

import typer

from lmtower.cli.globals import Globals
from lmtower.cli.output import print_json


def reload(ctx: typer.Context) -> None:
    """Make the running tower read its file again.

    A file with problems changes nothing: they are printed and the last good snapshot still serves.
    """
    options: Globals = ctx.obj
    answer = options.admin().post("/admin/reload")
    if options.json:
        print_json(answer)
    else:
        print(f"reloaded: snapshot {answer.get('version', '?')} serves now.")
        if answer.get("restart"):
            print(f"changed, but only a restart of the tower makes it so: {', '.join(answer['restart'])}")
