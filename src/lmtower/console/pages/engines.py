"""Engines & memory: the planner's picture beside what is observed; start, stop, restart; the log's end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from lmtower.console.console import Console, back, console_of, session_of
from lmtower.console.observed import observations
from lmtower.console.picture import engine_rows, node_rows
from lmtower.console.sessions import Session
from lmtower.errors import AdminError, TowerError

_ACTIONS = ("start", "stop", "restart")
_DONE = {"start": "started", "stop": "stopped", "restart": "restarted"}
_SOON_SECONDS = 0.8


async def show(request: Request) -> Response:
    """The page, and its live part."""
    console, session = console_of(request), session_of(request)
    status = await console.tower.get(session.key, "/admin/status")
    observed = observations(await console.tower.scrape(), await asyncio.to_thread(_local_memory, console))
    try:
        plan, trouble = await console.plan(), None
    except TowerError as error:
        plan, trouble = None, str(error)
    return console.page(
        request,
        "engines",
        engines=engine_rows(status, plan, observed, set(console.busy)),
        nodes=node_rows(plan, observed),
        plan=plan,
        trouble=trouble,
        supervised=status.get("supervised", False),
    )


def _local_memory(console: Console) -> Mapping[str, Mapping[str, float]]:
    try:
        return console.settings.local_memory()
    except TowerError:  # the tower file is wrong at the moment, or this machine has no /proc
        return {}


async def act(request: Request) -> Response:
    """Start, stop or restart in the background: a large model takes minutes, the page shows its state meanwhile."""
    console, session = console_of(request), session_of(request)
    engine, action = request.path_params["name"], request.path_params["action"]
    if action not in _ACTIONS:
        raise HTTPException(404)
    if engine in console.busy:
        session.say(f"{engine}: another action is still running.", "bad")
        return back("/engines")
    task = asyncio.create_task(_carry_out(console, session, engine, action))
    console.busy[engine] = task
    # what is refused at once, or done at once, is said on the next page
    await asyncio.wait([task], timeout=_SOON_SECONDS)
    if not task.done():
        session.say(f"{engine}: {action} has begun.")
    return back("/engines")


async def _carry_out(console: Console, session: Session, engine: str, action: str) -> None:
    try:
        await console.tower.engine(session.key, engine, action)
    except AdminError as error:
        session.say(f"{engine}: {error}", "bad")
    else:
        session.say(f"{engine} is {_DONE[action]}.")
    finally:
        console.busy.pop(engine, None)


async def log(request: Request) -> Response:
    """The last lines of an engine, as text."""
    console, session = console_of(request), session_of(request)
    try:
        return PlainTextResponse(await console.tower.log(session.key, request.path_params["name"]) or "(empty)")
    except AdminError as error:
        return PlainTextResponse(str(error), 502)


ROUTES = [
    Route("/engines", show, methods=["GET"]),
    Route("/live/engines", show, methods=["GET"]),
    Route("/engines/{name}/log", log, methods=["GET"]),
    Route("/engines/{name}/{action}", act, methods=["POST"]),
]
