"""Clients: make a key (shown once), change what it may do, revoke it, what it used; usage as CSV."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lmtower.console import charts, words
from lmtower.console.console import Console, back, console_of, form_of, session_of
from lmtower.console.pages.overview import USED, run_out, usage_rows
from lmtower.console.settings import Json
from lmtower.errors import AdminError

LIMITS = (
    ("requests_per_minute", "Requests per minute", 1),
    ("tokens_per_minute", "Tokens per minute", 1),
    ("tokens_per_day", "Tokens per day", 1),
    ("images_per_day", "Images per day", 1),
    ("money_per_month", "Money per month", 0.01),
    ("parallel", "At the same time", 1),
)
"""Field, label, step: a whole number, or money."""
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
    personas = await _personas(console, session.key)
    rows = [{**key, "used": used.get(key["id"]), "limits": words.limits(key["limits"])} for key in keys]
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
    """One key: columns by day, personas, end users, budgets, and the form that changes what it may do."""
    console, session = console_of(request), session_of(request)
    keys = (await console.tower.get(session.key, "/admin/keys"))["keys"]
    found = next((key for key in keys if key["id"] == request.path_params["id"]), None)
    if found is None:
        raise HTTPException(404, "There is no such key.")
    report = await _usage(console, session.key, "client_id,day,persona,end_user")
    rows = [row for row in report["rows"] if row["client_id"] == found["id"]]
    prefix = f"{found['name']}:"
    budgets = [row for row in run_out(console.watch.page, console.clock()) if row["name"].startswith(prefix)]
    known = await _personas(console, session.key)
    return console.page(
        request,
        "client",
        client=found,
        said=words.limits(found["limits"]),
        total=_total(rows),
        days=by_day(rows, console.clock()),
        tables=[("Personas", usage_rows(sums_by("persona", rows))), ("End users", usage_rows(_end_users(rows)))],
        budgets=budgets,
        choices=known + [name for name in found["personas"] or () if name not in known],
        limits=LIMITS,
    )


async def _personas(console: Console, key: str) -> list[str]:
    return [row["name"] for row in (await console.tower.get(key, "/admin/status"))["personas"]]


def _end_users(rows: list[Json]) -> list[Json]:
    """Those whom the client named; nobody when it never did."""
    return [row for row in sums_by("end_user", rows) if row["client"]]


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


def sums_by(group: str, rows: list[Json]) -> list[Json]:
    """Sums of each persona or end user, the most tokens first; named ``client`` for the bars that clients have."""
    sums: dict[str, Json] = {}
    for row in rows:
        into = sums.setdefault(row[group], {"client": row[group], **_total([])})
        for name in USED:
            into[name] += row[name]
    return sorted(sums.values(), key=lambda row: -row["input_tokens"] - row["output_tokens"])


def _total(rows: list[Json]) -> Json:
    return {name: sum(row[name] for row in rows) for name in USED}


async def _usage(console: Console, key: str, by: str) -> Json:
    since = console.clock() - _DAYS * _DAY_SECONDS
    answer: Json = await console.tower.get(key, "/admin/usage", by=by, since=since)
    return answer


async def create(request: Request) -> Response:
    """Make a key; it is shown on the next page, once."""
    console, session = console_of(request), session_of(request)
    form = await form_of(request)
    try:
        made = await console.tower.post(session.key, "/admin/keys", new_key(form))
    except (AdminError, ValueError) as error:
        session.say(str(error), "bad")
    else:
        session.new_key = str(made["name"]), str(made["key"])
    return back("/clients")


async def change(request: Request) -> Response:
    """Set what a key may do to what the form says; the key itself stays."""
    console, session = console_of(request), session_of(request)
    path = quote(request.path_params["id"], safe="")
    form = await form_of(request)
    try:
        await console.tower.patch(session.key, f"/admin/keys/{path}", changed_key(form))
    except (AdminError, ValueError) as error:
        session.say(str(error), "bad")
    else:
        session.say("Saved. It holds from the next request on.")
    return back(f"/clients/{path}")


def new_key(form: dict[str, list[str]]) -> Json:
    """The form as the admin API wants it: only what was filled in. Raises ValueError in words."""
    return {name: value for name, value in changed_key(form).items() if value is not None}


def changed_key(form: dict[str, list[str]]) -> Json:
    """The whole form: an empty field takes its limit away. Raises ValueError in words."""
    name = _field(form, "name")
    if not name:
        raise ValueError("A client needs a name.")
    limits = {key: _number(label, _field(form, key), whole=step == 1) for key, label, step in LIMITS}
    return {
        "name": name,
        "personas": form.get("personas"),
        "limits": limits if any(value is not None for value in limits.values()) else None,
        "expires_at": _end_of(_field(form, "expires")),
    }


def _field(form: dict[str, list[str]], name: str) -> str:
    return form.get(name, [""])[0].strip()


def _number(label: str, text: str, *, whole: bool) -> float | None:
    if not text:
        return None
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        raise ValueError(f"{label}: {text!r} is not a number.") from None
    if not 0 <= number < 10**15:
        raise ValueError(f"{label}: {text} is not a limit; write a number, or nothing for no limit.")
    return number


def _end_of(text: str) -> float | None:
    """The end of that day, UTC."""
    if not text:
        return None
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise ValueError(f"Valid until: {text!r} is not a date.") from None
    return day.timestamp() + _DAY_SECONDS - 1


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
    Route("/clients/{id}", change, methods=["POST"]),
    Route("/clients/{id}/revoke", revoke, methods=["POST"]),
]
