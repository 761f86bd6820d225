"""What a person reads when the tower stands: address, key, personas, and a request to paste."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from lmtower.cli.globals import Globals
from lmtower.cli.output import table

if TYPE_CHECKING:
    from lmtower.cli.serving import Started
    from lmtower.config.types import Tower

KEY_VARIABLE = "LMTOWER_KEY"


def ready_line(started: Started) -> None:
    """One line, for logs and service managers."""
    print(f"lmtower serves on {base_url(started)} (admin on {_address(started.admin)})", flush=True)


def welcome(options: Globals) -> Callable[[Started], None]:
    """The whole page of ``lmtower up``; JSON if that was asked for."""

    def show(started: Started) -> None:
        print(json.dumps(_facts(started)) if options.json else page(started, options), flush=True)

    return show


def page(started: Started, options: Globals) -> str:
    """The page as text."""
    url = base_url(started)
    tower = started.tower.tower
    shown = [(name, persona) for name, persona in tower.personas.items() if not persona.hidden]
    rows = [(name, persona.engine, persona.lane, persona.description) for name, persona in shown]
    flags = f" --data-dir {options.data_dir}" if str(options.data_dir) != "tower-data" else ""
    if started.first_key:
        key = f"key      {started.first_key}\n         shown once: only its hash is kept, in {options.data_dir}"
    else:
        key = (
            f"key      the one from the first start; lmtower key create NAME{flags} makes another ({options.data_dir})"
        )
    parts = [
        f"lmtower stands.\n\naddress  {url}/v1\nadmin    http://{_address(started.admin)}\n{key}",
        table(("PERSONA", "ENGINE", "LANE", "WHAT FOR"), rows),
        f"Try it:\n\n{curl(url, shown[0][0] if shown else next(iter(tower.personas)), started.first_key)}",
        _how_it_ends(tower),
    ]
    return "\n" + "\n\n".join(parts) + "\n"


def _how_it_ends(tower: Tower) -> str:
    from lmtower.engines import driver_of

    if any(driver_of(node) == "docker" for node in tower.nodes.values()):
        return "Ctrl-C stops the gateway; containers run on until lmtower down."
    return "Ctrl-C stops everything."


def curl(url: str, persona: str, key: str | None) -> str:
    """A chat request to paste into a shell."""
    question = {"role": "user", "content": "How do I brew good coffee?"}
    body = json.dumps({"model": persona, "messages": [question], "max_tokens": 120})
    return (
        f"curl {url}/v1/chat/completions \\\n"
        f"  -H 'Authorization: Bearer {key or '$' + KEY_VARIABLE}' -H 'Content-Type: application/json' \\\n"
        f"  -d '{body}'"
    ).replace(f"'Authorization: Bearer ${KEY_VARIABLE}'", f'"Authorization: Bearer ${KEY_VARIABLE}"')


def base_url(started: Started) -> str:
    """The clients' address as this machine can reach it."""
    scheme = "https" if started.tower.tower.gateway.tls else "http"
    return f"{scheme}://{_address(started.listen)}"


def _address(address: tuple[str, int]) -> str:
    host = {"0.0.0.0": "localhost", "::": "localhost", "127.0.0.1": "localhost"}.get(address[0], address[0])
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"


def _facts(started: Started) -> dict[str, object]:
    return {
        "url": f"{base_url(started)}/v1",
        "admin": f"http://{_address(started.admin)}",
        "key": started.first_key,
        "personas": list(started.tower.tower.personas),
    }
