"""Clients: make a key (shown once), revoke it, its limits and what it used; usage as CSV."""

from __future__ import annotations

import csv
import io
import time
from datetime import UTC, datetime
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lmtower.console import charts, words
from lmtower.console.console import Console, back, console_of, form_of, session_of
from lmtower.console.pages.overview import run_out, usage_rows
from lmtower.console.settings import Json
from lmtower.errors import AdminError

LIMITS = (
    ("requests_per_minute", "Requests per minute"),
    ("tokens_per_minute", "Tokens per minute"),
    ("tokens_per_day", "Tokens per day"),
    ("images_per_day", "Images per day"),
    ("money_per_month", "Money per month"),
    ("parallel", "At the same time"),
)
_DAY_SECONDS = 86_400
_DAYS = 30
_CSV_BY = "day,client,persona"


async def listing(request: Request) -> Response:
    """Keys with the use of 30 days, and the form for a new one."""
    console, session = console_of(request), session_of(request)
    made, session.new_key = session.new_key, None
    keys = (await console.tower.get(session.key, "/admin/keys"))["keys"]
    report = await _usage(console, session.key, "client_id")
    used = {row["client_id"]: row for row in report["rows"]}
    personas = [row["name"] for row in (await console.tower.get(session.key, "/admin/status"))["personas"]]
    rows = [{**key, "used": used.get(key["id"]), "limits": in_words(key["limits"])} for key in keys]
    rows.sort(key=lambda row: (row["state"] != "active", -(row["created_at"] or 0)))
    return console.page(
        request,
        "clients",
        made=made,
        active=[row for row in rows if row["state"] == "active"],
        past=[row for row in rows if row["state"] != "active"],
        personas=personas,
        limits=LIMITS,
        days=_DAYS,
    )


async def one(request: Request) -> Response:
    """One key: columns by day, personas, budgets."""
    console, session = console_of(request), session_of(request)
    keys = (await console.tower.get(session.key, "/admin/keys"))["keys"]
    found = next((key for key in keys if key["id"] == request.path_params["id"]), None)
    if found is None:
        raise HTTPException(404, "There is no such key.")
    report = await _usage(console, session.key, "client_id,day,persona")
    rows = [row for row in report["rows"] if row["client_id"] == found["id"]]
    personas = usage_rows(by_persona(rows))
    prefix = f"{found['name']}:"
    budgets = [row for row in run_out(console.watch.page, console.clock()) if row["name"].startswith(prefix)]
    return console.page(
        request,
        "client",
        client={**found, "limits": in_words(found["limits"])},
        total=_total(rows),
        days=by_day(rows, console.clock()),
        personas=personas,
        budgets=budgets,
    )


def in_words(limits: Json | None) -> list[str]:
    """``tokens per day 100,000`` for each limit of a key."""
    names = dict(LIMITS)
    return [f"{names.get(name, name).lower()} {value:,}" for name, value in (limits or {}).items()]


def by_day(rows: list[Json], now: float) -> list[Json]:
    """Columns of requests and of tokens over the latest days, days without use included."""
    days = [datetime.fromtimestamp(now - back * _DAY_SECONDS, UTC).strftime("%Y-%m-%d") for back in range(_DAYS)][::-1]
    found = []
    for name, fields in (("Requests", ("requests",)), ("Tokens", ("input_tokens", "output_tokens"))):
        sums = dict.fromkeys(days, 0)
        for row in rows:
            if row["day"] in sums:
                sums[row["day"]] += sum(row[field] for field in fields)
        values = [(f"{day}: {words.count(value)}", float(value)) for day, value in sums.items()]
        label = f"{name} by day, {words.count(sum(sums.values()))} in {_DAYS} days"
        plot = {"name": name, "svg": charts.columns(values, label), "most": max(sums.values())}
        found.append({**plot, "from": days[0], "to": days[-1]})
    return found


def by_persona(rows: list[Json]) -> list[Json]:
    """Sums over days, the most tokens first; named ``client`` for the bars that clients have."""
    sums: dict[str, Json] = {}
    for row in rows:
        into = sums.setdefault(row["persona"], {"client": row["persona"], **_total([])})
        for name in _total([]):
            into[name] += row[name]
    return sorted(sums.values(), key=lambda row: -row["input_tokens"] - row["output_tokens"])


def _total(rows: list[Json]) -> Json:
    names = ("requests", "input_tokens", "cached_tokens", "output_tokens", "images", "cost")
    return {name: sum(row[name] for row in rows) for name in names}


async def _usage(console: Console, key: str, by: str) -> Json:
    since = console.clock() - _DAYS * _DAY_SECONDS
    answer: Json = await console.tower.get(key, "/admin/usage", by=by, since=since)
    return answer


async def create(request: Request) -> Response:
    """Make a key; it is shown on the next page, once."""
    console, session = console_of(request), session_of(request)
    form = await form_of(request)
    try:
        made = await console.tower.post(session.key, "/admin/keys", new_key(form, time.time()))
    except (AdminError, ValueError) as error:
        session.say(str(error), "bad")
    else:
        session.new_key = str(made["name"]), str(made["key"])
    return back("/clients")


def new_key(form: dict[str, list[str]], now: float) -> Json:
    """The form as the admin API wants it. Raises ValueError in words."""
    body: Json = {"name": form.get("name", [""])[0].strip()}
    if not body["name"]:
        raise ValueError("A client needs a name.")
    if form.get("personas"):
        body["personas"] = form["personas"]
    limits = {}
    for name, label in LIMITS:
        text = form.get(name, [""])[0].strip()
        if text:
            limits[name] = _number(label, text, whole=name != "money_per_month")
    if limits:
        body["limits"] = limits
    days = form.get("days", [""])[0].strip()
    if days:
        body["expires_at"] = now + _number("Expires after days", days, whole=True) * _DAY_SECONDS
    return body


def _number(label: str, text: str, *, whole: bool) -> float:
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        raise ValueError(f"{label}: {text!r} is not a number.") from None
    if not 0 < number < 10**15:
        raise ValueError(f"{label}: write a number above zero.")
    return number


async def revoke(request: Request) -> Response:
    """Revoke a key; requests with it are refused from then on."""
    console, session = console_of(request), session_of(request)
    try:
        await console.tower.delete(session.key, f"/admin/keys/{quote(request.path_params['id'], safe='')}")
    except AdminError as error:
        session.say(str(error), "bad")
    else:
        session.say("The key is revoked.")
    return back("/clients")


async def download(request: Request) -> Response:
    """Usage of 30 days by day, client and persona."""
    console = console_of(request)
    report = await _usage(console, session_of(request).key, _CSV_BY)
    headers = {"content-disposition": 'attachment; filename="lmtower-usage.csv"'}
    return Response(as_csv(report["rows"]), media_type="text/csv", headers=headers)


def as_csv(rows: list[Json]) -> str:
    """One line a row. Text that a spreadsheet would take for a formula gets an apostrophe."""
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _plain(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


ROUTES = [
    Route("/clients", listing, methods=["GET"]),
    Route("/clients", create, methods=["POST"]),
    Route("/clients/usage.csv", download, methods=["GET"]),
    Route("/clients/{id}", one, methods=["GET"]),
    Route("/clients/{id}/revoke", revoke, methods=["POST"]),
]
