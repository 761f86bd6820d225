"""``lmtower explain PERSONA < request.json``: what exactly is sent upstream, and which rule set which field."""

from __future__ import annotations

import sys
from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from lmtower.cli.globals import Globals
from lmtower.cli.output import print_json, table
from lmtower.config import Tower
from lmtower.errors import Refused


def explain(
    ctx: typer.Context,
    persona: Annotated[str, typer.Argument(help="Persona, or one of its aliases.")] = "",
    protocol: Annotated[str, typer.Option(help="Protocol of the request: chat, completions, embeddings, ...")] = "chat",
    session: Annotated[str, typer.Option(help="A session of the running tower: what broke its prefix cache.")] = "",
) -> None:
    """Show what a persona makes of a request: URL, headers without secrets, body, and the rule behind every field.

    The request is read from standard input. No tower has to run.
    """
    if session:
        _session(ctx.obj, session)
        return
    from lmtower.cli.upstreams import upstreams_of
    from lmtower.gateway.snapshot import compiled
    from lmtower.guard import mended
    from lmtower.personas import PREPARERS
    from lmtower.personas import explain as explain_request
    from lmtower.wire import Fault

    options: Globals = ctx.obj
    if not persona:
        raise Refused("name a persona, or a session with --session.")
    tower = options.load().tower
    if protocol not in PREPARERS:
        raise Refused(f"no protocol {protocol!r}. There is {', '.join(PREPARERS)}.")
    name = find_persona(tower, persona)
    if sys.stdin.isatty():
        print("Paste a JSON request, then Ctrl-D:", file=sys.stderr)
    body = sys.stdin.buffer.read()
    engine = tower.personas[name].engine
    upstream = next(upstream for upstream in upstreams_of(tower) if upstream.engine == engine)
    has_key = upstream.api_key is not None
    try:
        body = mended(protocol, body)
        known = compiled(tower, name, upstream)
        explanation = explain_request(protocol, body, known, engine_url=upstream.url, has_key=has_key)
    except Fault as fault:
        raise Refused(f"the gateway would answer {fault.status}: {fault.message}") from fault
    _show(explanation, options.json)


def _session(options: Globals, session: str) -> None:
    """What changed first in the requests of a session, as the running tower has seen it."""
    from lmtower.cli.admin import Admin

    found = Admin.of_running_tower(options.data_dir).post("/admin/explain", {"session": session})["sessions"]
    if options.json:
        print_json(found)
        return
    if not found:
        raise Refused(f"no session {session!r} among the latest ones.")
    for entry in found:
        print(f"{entry['persona']}: {entry['requests']} requests, {len(entry['changes'])} with a changed beginning")
        rows = [
            (change["request_id"], change["span"], change["place"], f"{change['at']} of {change['of']} bytes shared")
            for change in entry["changes"]
        ]
        if rows:
            print(table(("REQUEST", "SPAN", "FIRST CHANGE", "PREFIX"), rows))


def _show(explanation: Any, as_json: bool) -> None:
    value = {
        "url": explanation.url,
        "headers": explanation.headers,
        "body": explanation.body,
        "rules": [{"field": field, "rule": rule} for field, rule in explanation.rules],
    }
    if as_json:
        print_json(value)
        return
    print(f"POST {explanation.url}" if explanation.url else "no engine is asked; the answer is")
    for header, text in explanation.headers.items():
        print(f"{header}: {text}")
    print()
    print_json(explanation.body)
    print()
    print(table(("FIELD", "RULE"), explanation.rules))


def find_persona(tower: Tower, asked: str) -> str:
    """The persona of that name or alias. Raises Refused with the nearest one."""
    from difflib import get_close_matches

    if asked in tower.personas:
        return asked
    for name, persona in tower.personas.items():
        if any(fnmatchcase(asked, alias) for alias in persona.aliases):
            return name
    near = get_close_matches(asked, tower.personas, 1)
    raise Refused(
        f"no persona {asked!r}. " + (f"Did you mean {near[0]!r}?" if near else f"There is {', '.join(tower.personas)}.")
    )
