"""The console as an ASGI application: pages, static files, the door in front, the watch in the background."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from lmtower.console.console import Console
from lmtower.console.door import Door
from lmtower.console.pages import clients, engines, login, overview, personas, requests, stores
from lmtower.console.settings import Settings
from lmtower.errors import TowerError


def application(settings: Settings) -> Starlette:
    """The whole console over one tower."""
    console = Console(settings)

    @asynccontextmanager
    async def alive(_: Starlette) -> AsyncIterator[None]:
        looking = asyncio.create_task(console.watch.run())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            await console.close()

    async def trouble(request: Request, error: Exception) -> Response:
        """The tower is gone or refused: said on a page of its own, the console stays."""
        if isinstance(error, HTTPException):
            status, text = error.status_code, error.detail
        else:
            status, text = 502, str(error)
        if request.state.session is None or request.url.path.startswith("/live/"):
            return PlainTextResponse(text + "\n", status)
        return console.page(request, "trouble", status, text=text)

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    pages = (login, overview, personas, clients, engines, requests, stores)
    app = Starlette(
        routes=[
            Route("/healthz", healthz, methods=["GET"]),
            Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
            *(route for page in pages for route in page.ROUTES),
        ],
        middleware=[Middleware(Door, sessions=console.sessions, hosts=settings.hosts)],
        exception_handlers={TowerError: trouble, HTTPException: trouble},
        lifespan=alive,
    )
    app.state.console = console
    return app
