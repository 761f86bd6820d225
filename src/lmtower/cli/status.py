"""``lmtower status``: engines, personas and the gateway at a glance."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import typer

from lmtower.cli.globals import Globals
from lmtower.cli.output import print_json, table


def status(ctx: typer.Context) -> None:
    """Show engines with their state, personas, requests in flight and the prefix cache's hit rate."""
    options: Globals = ctx.obj
    answer = options.admin().get("/admin/status")
    if options.json:
        print_json(answer)
        return
    parts = (_engines(answer), _reasons(answer), _personas(answer), _snapshot(answer))
    print("\n\n".join(part for part in parts if part))


def _engines(answer: Mapping[str, Any]) -> str:
    rows = [
        (
            engine["name"],
            engine["state"],
            f"{engine.get('in_flight', 0)}/{engine.get('slots', '?')}",
            sum((engine.get("queued") or {}).values()),
            percent(engine.get("hit_rate")),
            ", ".join(_upstream(upstream) for upstream in engine.get("upstreams", ())) or None,
        )
        for engine in answer.get("engines", ())
    ]
    return table(("ENGINE", "STATE", "RUNNING", "QUEUED", "HIT RATE", "UPSTREAMS"), rows)


def _reasons(answer: Mapping[str, Any]) -> str:
    """Why an engine is not ready, where the tower that starts it knows."""
    return "\n".join(f"{each['name']}: {each['detail']}" for each in answer.get("engines", ()) if each.get("detail"))


def _upstream(upstream: Mapping[str, Any]) -> str:
    return str(upstream["url"]) + ("" if upstream.get("healthy", True) else " (down)")


def _personas(answer: Mapping[str, Any]) -> str:
    rows = [
        (
            persona["name"],
            persona["engine"],
            persona.get("lane"),
            persona.get("requests", 0),
            persona.get("in_flight", 0),
            percent(persona.get("hit_rate")),
            seconds(persona.get("ttft_p50")),
        )
        for persona in answer.get("personas", ())
    ]
    return table(("PERSONA", "ENGINE", "LANE", "REQUESTS", "RUNNING", "HIT RATE", "TTFT P50"), rows)


def _snapshot(answer: Mapping[str, Any]) -> str:
    snapshot = answer.get("snapshot") or {}
    text = f"snapshot {snapshot.get('version', '?')}, loaded {moment(snapshot.get('loaded_at'))}"
    if snapshot.get("error"):
        text += (
            f"\nthe tower file has changed since, but cannot be used; the last good one serves:\n{snapshot['error']}"
        )
    if snapshot.get("restart"):
        text += f"\nchanged, but only a restart of the tower makes it so: {', '.join(snapshot['restart'])}"
    return text


def percent(share: float | None) -> str | None:
    """0.813 -> ``81%``."""
    return None if share is None else f"{share * 100:.0f}%"


def seconds(value: float | None) -> str | None:
    """0.0123 -> ``12 ms``, 2.5 -> ``2.5 s``."""
    if value is None:
        return None
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def moment(value: float | None) -> str:
    """Seconds since the epoch -> local time."""
    return "?" if value is None else datetime.fromtimestamp(value).strftime("%Y-%m-%d %H:%M:%S")
