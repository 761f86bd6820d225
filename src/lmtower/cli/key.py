"""``lmtower key create | list | update | revoke``: the keys of clients."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from lmtower.cli.globals import Globals, group
from lmtower.cli.ledger import ledger, moment, print_table, spoken_moment
from lmtower.cli.output import print_json
from lmtower.errors import Refused

if TYPE_CHECKING:
    from lmtower.config import Tower
    from lmtower.config.types import Limits
    from lmtower.ledger import Client, KeyRow

app = group()

RequestsPerMinute = Annotated[str | None, typer.Option(help="Requests in any 60 seconds.")]
TokensPerMinute = Annotated[str | None, typer.Option(help="Input and output tokens in any 60 seconds (50k).")]
TokensPerDay = Annotated[str | None, typer.Option(help="Input and output tokens in any 24 hours (2m).")]
ImagesPerDay = Annotated[str | None, typer.Option(help="Images in any 24 hours.")]
MoneyPerMonth = Annotated[str | None, typer.Option(help="Spend in a calendar month (UTC), by the personas' price.")]
Parallel = Annotated[str | None, typer.Option(help="Requests at the same time.")]

_WHICH = "Id, name, shown beginning, or the key itself."
_NONE = "none"


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Who will use it; shown in reports.")],
    persona: Annotated[
        list[str] | None,
        typer.Option(help="Persona that the key may use; repeat it, or separate by commas. Default: all."),
    ] = None,
    expires: Annotated[str | None, typer.Option(help="When it ends: 90d, 12h, or a date such as 2027-01-31.")] = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    tokens_per_day: TokensPerDay = None,
    images_per_day: ImagesPerDay = None,
    money_per_month: MoneyPerMonth = None,
    parallel: Parallel = None,
) -> None:
    """Make a key. It is shown once; when the output is not a terminal, only the key is printed."""
    options: Globals = ctx.obj
    limits = _limits(_limit_options(ctx))
    expires_at = None if expires is None else _end(expires)
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
def update(
    ctx: typer.Context,
    key: Annotated[str, typer.Argument(metavar="ID|NAME", help=_WHICH)],
    name: Annotated[str | None, typer.Option(help="Another name; what was used stays under the old one.")] = None,
    persona: Annotated[
        list[str] | None,
        typer.Option(help="Persona that the key may use; repeat it, or separate by commas. `all`: every persona."),
    ] = None,
    expires: Annotated[str | None, typer.Option(help="When it ends: 90d, 12h, a date, or `never`.")] = None,
    requests_per_minute: RequestsPerMinute = None,
    tokens_per_minute: TokensPerMinute = None,
    tokens_per_day: TokensPerDay = None,
    images_per_day: ImagesPerDay = None,
    money_per_month: MoneyPerMonth = None,
    parallel: Parallel = None,
) -> None:
    """Change what a key may do; the key stays the same, and so does what it has used.

    Only what is named changes. `none` takes a limit away; a key without limits of its own has those of the tower.
    Towers that run see it within a second.
    """
    options: Globals = ctx.obj
    named = {limit: None if value == _NONE else value for limit, value in _limit_options(ctx).items()}
    _limits(named)  # what is wrong by itself is said before anything is opened
    changed: dict[str, object] = {} if name is None else {"name": name}
    if expires is not None:
        changed["expires_at"] = None if expires in ("never", _NONE) else _end(expires)
    if not (changed or named or persona):
        raise Refused("name at least one thing to change; lmtower key update --help lists them.")
    with ledger(options) as (opened, tower):
        if persona:
            changed["personas"] = None if persona == ["all"] else _personas(persona, tower)
        client = opened.change_key(key, lambda old: _changed(old, changed, named))
    if options.json:
        print_json(client.as_dict())
    else:
        print(f"Changed {client.name!r} ({client.id}): {_what(client)}.")


def _changed(old: Client, changed: dict[str, object], named: dict[str, str | None]) -> Client:
    import msgspec

    had = {} if old.limits is None else old.limits.model_dump(exclude_none=True)
    return msgspec.structs.replace(old, **changed, **({"limits": _limits({**had, **named})} if named else {}))


def _what(client: Client) -> str:
    personas = "all personas" if client.personas is None else ", ".join(sorted(client.personas))
    limits = _limits_text(client)
    end = spoken_moment(client.expires_at)
    return f"{personas}; {limits or 'the limits of the tower'}; {f'valid until {end} UTC' if end else 'no end'}"


@app.command()
def revoke(
    ctx: typer.Context,
    key: Annotated[str, typer.Argument(metavar="ID|NAME", help=_WHICH)],
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


def _end(expires: str) -> float:
    now = time.time()
    at = moment(expires, now, past=False)
    if at <= now:
        raise Refused(f"--expires {expires}: that is in the past.")
    return at


def _limit_options(ctx: typer.Context) -> dict[str, str]:
    """The limits that were named on the command line."""
    from lmtower.config.types import Limits

    return {name: ctx.params[name] for name in Limits.model_fields if ctx.params.get(name) is not None}


def _limits(values: Mapping[str, str | float | None]) -> Limits | None:
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
    return (
        client.id,
        client.name,
        f"{client.prefix}…",
        "all" if client.personas is None else ", ".join(sorted(client.personas)),
        _limits_text(client) or None,
        spoken_moment(client.created_at),
        spoken_moment(client.expires_at),
        row.state(now),
    )


def _limits_text(client: Client) -> str:
    limits = {} if client.limits is None else client.limits.model_dump(exclude_none=True)
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in limits.items()
    )
