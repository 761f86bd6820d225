"""``lmtower key create | list | revoke``: the keys of clients."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from lmtower.cli.globals import Globals, group
from lmtower.cli.ledger import ledger, moment, print_table, spoken_moment
from lmtower.cli.output import print_json
from lmtower.errors import Refused

if TYPE_CHECKING:
    from lmtower.config import Tower
    from lmtower.config.types import Limits
    from lmtower.ledger import KeyRow

app = group()


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Who will use it; shown in reports.")],
    persona: Annotated[
        list[str] | None,
        typer.Option(help="Persona that the key may use; repeat it, or separate by commas. Default: all."),
    ] = None,
    expires: Annotated[str | None, typer.Option(help="When it ends: 90d, 12h, or a date such as 2027-01-31.")] = None,
    requests_per_minute: Annotated[str | None, typer.Option(help="Requests in any 60 seconds.")] = None,
    tokens_per_minute: Annotated[
        str | None, typer.Option(help="Input and output tokens in any 60 seconds (50k).")
    ] = None,
    tokens_per_day: Annotated[str | None, typer.Option(help="Input and output tokens in any 24 hours (2m).")] = None,
    images_per_day: Annotated[str | None, typer.Option(help="Images in any 24 hours.")] = None,
    money_per_month: Annotated[
        float | None, typer.Option(help="Spend in a calendar month (UTC), by the personas' price.")
    ] = None,
    parallel: Annotated[str | None, typer.Option(help="Requests at the same time.")] = None,
) -> None:
    """Make a key. It is shown once; when the output is not a terminal, only the key is printed."""
    options: Globals = ctx.obj
    limits = _limits(
        {
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "tokens_per_day": tokens_per_day,
            "images_per_day": images_per_day,
            "money_per_month": money_per_month,
            "parallel": parallel,
        }
    )
    now = time.time()
    expires_at = None if expires is None else moment(expires, now, past=False)
    if expires_at is not None and expires_at <= now:
        raise Refused(f"--expires {expires}: that is in the past.")
    with ledger(options) as (opened, tower):
        personas = _personas(persona or (), tower)
        made = opened.create_key(name, personas, limits, expires_at)
    if options.json:
        print_json({**made.client.as_dict(), "key": made.secret})
    elif not sys.stdout.isatty():
        print(made.secret)
    else:
        until = spoken_moment(expires_at)
        print(
            f"{made.secret}\n\nKey for {name!r}{f', valid until {until} UTC' if until else ''}. It is not shown again."
        )


@app.command("list")
def list_keys(
    ctx: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Revoked and expired keys too.")] = False,
) -> None:
    """Show the keys; never their secrets."""
    options: Globals = ctx.obj
    with ledger(options) as (opened, _):
        rows = opened.list_keys()
    now = time.time()
    rows = tuple(row for row in rows if everything or row.state(now) == "active")
    if options.json:
        print_json([row.as_dict(now) for row in rows])
    elif not rows:
        print("No keys. Make one: lmtower key create NAME")
    else:
        columns = ("id", "name", "key", "personas", "limits", "created", "expires", "state")
        print_table(columns, [_cells(row, now) for row in rows])


@app.command()
def revoke(
    ctx: typer.Context,
    key: Annotated[str, typer.Argument(metavar="ID|NAME", help="Id, name, shown beginning, or the key itself.")],
) -> None:
    """End a key. Towers that run see it within a second."""
    options: Globals = ctx.obj
    with ledger(options) as (opened, _):
        client = opened.revoke_key(key)
    if options.json:
        print_json({**client.as_dict(), "state": "revoked"})
    else:
        print(f"Revoked {client.name!r} ({client.id}, {client.prefix}…).")


def _personas(named: list[str] | tuple[()], tower: Tower | None) -> frozenset[str] | None:
    names = [name.strip() for part in named for name in part.split(",") if name.strip()]
    if tower is not None:
        for name in names:
            if name not in tower.personas:
                from difflib import get_close_matches

                hint = get_close_matches(name, tower.personas, 1)
                known = f"Did you mean {hint[0]!r}?" if hint else f"Known: {', '.join(tower.personas)}."
                raise Refused(f"the tower file has no persona {name!r}. {known}")
    return frozenset(names) if names else None


def _limits(values: dict[str, str | float | None]) -> Limits | None:
    from pydantic import ValidationError

    from lmtower.config.types import Limits

    given = {name: value for name, value in values.items() if value is not None}
    try:
        return Limits.model_validate(given) if given else None
    except ValidationError as exc:
        first = exc.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise Refused(f"{option} {first['input']}: {first['msg'].removeprefix('Value error, ')}") from exc


def _cells(row: KeyRow, now: float) -> tuple[object, ...]:
    client = row.client
    limits = {} if client.limits is None else client.limits.model_dump(exclude_none=True)
    return (
        client.id,
        client.name,
        f"{client.prefix}…",
        "all" if client.personas is None else ", ".join(sorted(client.personas)),
        ", ".join(f"{name}={value}" for name, value in limits.items()) or None,
        spoken_moment(client.created_at),
        spoken_moment(client.expires_at),
        row.state(now),
    )
