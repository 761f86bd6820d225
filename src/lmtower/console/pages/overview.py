"""Overview: is it healthy, who uses what, does the prefix cache work, what will run out."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lmtower.config.types import Price
from lmtower.console import charts, history, words
from lmtower.console.charts import Line
from lmtower.console.console import Console, console_of, session_of
from lmtower.console.samples import Window, parse
from lmtower.console.settings import Json
from lmtower.errors import AdminError

_TILE_SECONDS = 300.0
_DAY_SECONDS = 86_400.0
_SOON = 0.8
_WORTH_A_WORD = 0.005
USED = ("requests", "input_tokens", "cached_tokens", "output_tokens", "images", "cost")


async def show(request: Request) -> Response:
    """The page, and its live part."""
    console = console_of(request)
    span = request.query_params.get("range", "live")
    watch = console.watch
    if watch.status is None:
        await watch.look()
    if watch.status is None:
        return console.page(request, "overview", status=None, trouble=watch.trouble, range=span)
    report, trouble = await _report(console, session_of(request).key), watch.trouble
    file = await console.file()
    money = saved(report, file.observability.cloud_price if file else None)
    try:
        drawn = await _charts(console, span)
    except AdminError as error:
        drawn, trouble = _live_charts(console), str(error)
    values: dict[str, Any] = {
        "status": watch.status,
        "trouble": trouble or watch.status["snapshot"]["error"],
        "range": span,
        "ranges": ("live", *history.RANGES) if console.settings.prometheus_url else (),
        "tiles": tiles(watch.status, watch.recent.window(_TILE_SECONDS)) + ([money] if money else []),
        "charts": drawn,
        "usage": usage_rows(report["rows"]),
        "soon": run_out(watch.page, console.clock()),
    }
    return console.page(request, "overview", **values)


def tiles(status: Json, window: Window | None) -> list[Json]:
    """The numbers on top: name, value, what is behind it, and whether it is good."""
    engines = status["engines"]
    ready = sum(engine["state"] == "ready" for engine in engines)
    flight = sum(engine["in_flight"] for engine in engines)
    slots = sum(engine["slots"] for engine in engines)
    waiting = sum(sum(engine["queued"].values()) for engine in engines)
    requests = window.requests if window else 0.0
    failed, refused = (window.failed, window.refused) if window else (0.0, 0.0)
    written = window.per_second("output_tokens") if window else 0.0
    mood = "good" if ready == len(engines) else "bad"
    return [
        _tile("Engines ready", f"{ready} of {len(engines)}", _names(engines), mood),
        _tile("In flight", f"{flight} of {slots}", f"{waiting} waiting", "warn" if waiting else ""),
        _tile("Requests", words.count(requests), _unlucky(failed, refused), "bad" if failed else ""),
        _tile("Output tokens", f"{words.count(written)}/s", "over 5 min"),
        _tile("Prefix cache hits", words.percent(window.hit_rate if window else None), "in 5 min"),
        _tile("TTFT, median", words.seconds(window.ttft_p50 if window else None), "streams, 5 min"),
    ]


def _tile(name: str, value: str, note: str, mood: str = "") -> Json:
    return {"name": name, "value": value, "note": note, "mood": mood}


def _unlucky(failed: float, refused: float) -> str:
    counts = ((failed, "failed"), (refused, "refused"))
    said = [f"{words.count(number)} {what}" for number, what in counts if number]
    return "5 min, " + (", ".join(said) or "none failed")


def saved(report: Json, price: Price | None) -> Json | None:
    """What the same tokens had cost in the cloud, as a tile; None when the tower file names no price."""
    if price is None:
        return None
    total = report["total"]
    cloud = price.of(total["input_tokens"], total["cached_tokens"], total["output_tokens"], total["images"])
    return _tile("Money saved", words.money(cloud - total["cost"]), "24 h, cloud price")


def _names(engines: list[Json]) -> str:
    troubled = [f"{engine['name']} {engine['state']}" for engine in engines if engine["state"] != "ready"]
    return ", ".join(troubled or [engine["name"] for engine in engines][:3])


def run_out(page: str, now: float) -> list[Json]:
    """Budgets by how much of them is spent, and a certificate that ends within a month."""
    found: list[Json] = []
    for name, labels, value in parse(page):
        if name == "lmtower_budget_used_ratio" and value >= _WORTH_A_WORD:
            what = f"{labels['client']}: {labels['limit'].replace('_', ' ')}"
            found.append({"name": what, "used": min(1.0, value), "text": words.percent(value), "warn": value >= _SOON})
        elif name == "lmtower_certificate_expiry_timestamp_seconds" and 0 < value < now + 30 * _DAY_SECONDS:
            left = (value - now) / (30 * _DAY_SECONDS)
            text = f"{words.seconds(value - now)} left" if value > now else "expired"
            found.append({"name": "TLS certificate", "used": 1 - max(0.0, left), "text": text, "warn": True})
    ordered = sorted(found, key=lambda row: -row["used"])[:6]
    for row in ordered:
        part = charts.Part(row["text"], row["used"], "late" if row["warn"] else "s1")
        row["bar"] = charts.bar([part], 1.0, f"{row['name']}: {row['text']}", height=8)
    return ordered


async def _report(console: Console, key: str) -> Json:
    try:
        since = console.clock() - _DAY_SECONDS
        answer: Json = await console.tower.get(key, "/admin/usage", by="client", since=since)
    except AdminError:
        return {"rows": [], "total": dict.fromkeys(USED, 0)}
    return answer


def usage_rows(rows: list[Json]) -> list[Json]:
    """The five clients with the most tokens, each with a bar of cached, computed and written tokens."""
    most = max((row["input_tokens"] + row["output_tokens"] for row in rows), default=0)
    for row in rows[:5]:
        computed = row["input_tokens"] - row["cached_tokens"]
        parts = (
            charts.Part(f"{words.count(row['cached_tokens'])} from the cache", row["cached_tokens"], "cached"),
            charts.Part(f"{words.count(computed)} computed", computed, "computed"),
            charts.Part(f"{words.count(row['output_tokens'])} written", row["output_tokens"], "written"),
        )
        row["bar"] = charts.bar(parts, most, f"Tokens of {row['client']}: " + ", ".join(part.name for part in parts))
    return rows[:5]


async def _charts(console: Console, span: str) -> list[Json]:
    url = console.settings.prometheus_url
    if url is None or span not in history.RANGES:
        return _live_charts(console)
    past = await history.past(console.web, url, history.RANGES[span], console.clock())
    series = [past.requests, past.output_tokens, past.hit_rate, past.ttft_p50, past.ttft_p95]
    series[0] = [None if value is None else value * 60 for value in series[0]]
    return _four(past.times, series, words.moment)


def _live_charts(console: Console) -> list[Json]:
    times, steps = console.watch.recent.steps()
    series: list[list[float | None]] = [
        [step.per_second("requests") * 60 for step in steps],
        [step.per_second("output_tokens") for step in steps],
        [step.hit_rate for step in steps],
        [step.ttft_p50 for step in steps],
        [step.ttft_p95 for step in steps],
    ]
    return _four(times, series, words.clock)


def _four(times: list[float], series: list[list[float | None]], when: Any) -> list[Json]:
    requests, tokens, hits, p50, p95 = series
    made = (
        ("Requests per minute", [Line("requests", requests, 1)], words.count, None),
        ("Output tokens per second", [Line("tokens", tokens, 2)], words.count, None),
        ("Prefix cache hit rate", [Line("hit rate", hits, 3)], words.percent, 1.0),
        ("Time to first token", [Line("95th percentile", p95, 4), Line("median", p50, 1)], words.seconds, None),
    )
    return [
        {"name": name, "lines": lines, "svg": charts.chart(times, lines, show, when, top=top, label=name)}
        for name, lines, show, top in made
    ]


ROUTES = [Route("/", show, methods=["GET"]), Route("/live/overview", show, methods=["GET"])]
