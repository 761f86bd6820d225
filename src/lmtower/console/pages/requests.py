"""Requests: the latest ones with their phases as a waterfall. Never their content."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lmtower.console import charts, words
from lmtower.console.console import console_of, session_of
from lmtower.console.settings import Json

_LIMITS = (25, 100, 500)
_FILTERS = ("persona", "client", "outcome")


async def show(request: Request) -> Response:
    """The page, and its live part."""
    console, session = console_of(request), session_of(request)
    asked = request.query_params
    limit = int(asked.get("limit", "")) if asked.get("limit", "").isdigit() else _LIMITS[0]
    found = (await console.tower.get(session.key, "/admin/requests", limit=500))["requests"]
    chosen = {name: asked.get(name, "") for name in _FILTERS}
    return console.page(
        request,
        "requests",
        rows=rows(found, chosen, min(limit, _LIMITS[-1]), console.clock()),
        choices={name: choices(found, name) for name in _FILTERS},
        chosen=chosen,
        limit=limit,
        limits=_LIMITS,
        query=str(request.url.query),
    )


def choices(found: list[Json], name: str) -> list[str]:
    """What can be chosen in a filter: what was seen. The ledger leaves ``ok`` out of its records."""
    return sorted({_value(record, name) for record in found} - {""})


def _value(record: Json, name: str) -> str:
    return str(record.get(name, "ok" if name == "outcome" else ""))


def rows(found: list[Json], chosen: dict[str, str], limit: int, now: float) -> list[Json]:
    """Newest first, each with its bar; all bars have the scale of the longest."""
    wanted = [
        record
        for record in found
        if all(not choice or _value(record, name) == choice for name, choice in chosen.items())
    ]
    wanted = sorted(wanted, key=lambda record: -record["time"])[:limit]
    longest = max((record.get("duration_seconds", 0.0) for record in wanted), default=0.0)
    return [row(record, longest, now) for record in wanted]


def row(record: Json, longest: float, now: float) -> Json:
    """One request in words and as a bar."""
    parts = phases(record)
    total = record.get("duration_seconds", 0.0)
    said = ", ".join(f"{part.name} {words.seconds(part.size)}" for part in parts if part.size > 0)
    return {
        "id": record["request_id"],
        "at": words.clock(record["time"]),
        "ago": words.ago(record["time"], now),
        "client": record.get("client", ""),
        "persona": record.get("persona", ""),
        "protocol": record.get("protocol", ""),
        "lane": record.get("lane", ""),
        "outcome": _value(record, "outcome"),
        "status": record.get("status", 200),
        "stream": record.get("stream", False),
        "input_tokens": record.get("input_tokens", 0),
        "cached_tokens": record.get("cached_tokens", 0),
        "output_tokens": record.get("output_tokens", 0),
        "total": words.seconds(total),
        "ttft": words.seconds(record.get("ttft_seconds")),
        "said": said,
        "bar": charts.bar(parts, longest or 1.0, said or "no time spent", height=14),
    }


def phases(record: Json) -> list[charts.Part]:
    """Queue, prefill and decode in seconds. Without a stream the first token is not seen: the rest is one piece."""
    total = record.get("duration_seconds", 0.0)
    queue = min(total, record.get("queue_seconds", 0.0))
    ttft = record.get("ttft_seconds")
    if ttft is None:
        return [charts.Part("queue", queue, "queue"), charts.Part("engine", total - queue, "whole")]
    first = min(total, max(queue, ttft))
    return [
        charts.Part("queue", queue, "queue"),
        charts.Part("prefill", first - queue, "prefill"),
        charts.Part("decode", total - first, "decode"),
    ]


ROUTES = [Route("/requests", show, methods=["GET"]), Route("/live/requests", show, methods=["GET"])]
