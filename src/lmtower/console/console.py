"""Everything that a page needs: the tower, sessions, samples, templates."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

import httpx
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse

from lmtower import __version__
from lmtower.config.folder import INTERNAL_KEY
from lmtower.config.types import Tower as TowerFile
from lmtower.console import words
from lmtower.console.client_key import ClientKey
from lmtower.console.sessions import Session, Sessions
from lmtower.console.settings import Json, Settings
from lmtower.console.tower import Tower
from lmtower.console.watch import Watch
from lmtower.errors import ConfigError, TowerError

_MOST_FORM_BYTES = 1 << 20
MENU = (
    ("overview", "/", "Overview"),
    ("personas", "/personas", "Personas"),
    ("clients", "/clients", "Clients"),
    ("engines", "/engines", "Engines & memory"),
    ("requests", "/requests", "Requests"),
    ("stores", "/stores", "Stores"),
)


class Console:
    """One per process, in ``app.state``."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.clock = clock
        self.sessions = Sessions(time.monotonic)
        self.tower = Tower(settings)
        self.watch = Watch(settings, self.tower, self.sessions, clock)
        self.web = httpx.AsyncClient(timeout=httpx.Timeout(30, connect=5), trust_env=False, verify=settings.verify)
        self.client_key = ClientKey(settings.data_dir, self.tower)
        self.busy: dict[str, asyncio.Task[None]] = {}
        """Engines that are being started or stopped on behalf of somebody."""
        self._file: TowerFile | None = None
        self._pooling: tuple[TowerFile | None, frozenset[str]] = None, frozenset()
        self._environment = Environment(
            loader=PackageLoader("lmtower.console"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals.update(words=words, menu=MENU, version=__version__)

    @property
    def has_stores(self) -> bool:
        """Whether the tower runs a store service that the console may ask."""
        return self.settings.stores_url is not None and self.settings.secret(INTERNAL_KEY) is not None

    async def file(self) -> TowerFile | None:
        """The tower file; the last good one when it is wrong at the moment."""
        with suppress(ConfigError):
            self._file = await asyncio.to_thread(self.settings.read)
        return self._file

    async def plan(self) -> Json | None:
        """What the planner says of the tower file; None when it was not handed over. Raises TowerError."""
        return None if self.settings.plan is None else await asyncio.to_thread(self.settings.plan)

    async def pooling(self, file: TowerFile) -> frozenset[str]:
        """Engines that embed or rank instead of writing, as the planner knows them."""
        if self._pooling[0] != file:
            with suppress(TowerError):
                plan = await self.plan() or {"engines": ()}
                self._pooling = file, frozenset(row["name"] for row in plan["engines"] if _embeds(row))
        return self._pooling[1]

    def text(self, template: str, **values: Any) -> str:
        """A rendered template."""
        return self._environment.get_template(template).render(values)

    def page(self, request: Request, here: str, code: int = 200, **values: Any) -> HTMLResponse:
        """A whole page, or only its live part when the script asks for that."""
        if request.url.path.startswith("/live/"):
            return HTMLResponse(self.text(f"live/{here}.html", here=here, **values), code)
        session = session_of(request)
        more = {"here": here, "notices": session.take_notices(), "stores_on": self.has_stores}
        return HTMLResponse(self.text(f"{here}.html", **more, **values), code)

    async def close(self) -> None:
        """End what runs."""
        for task in self.busy.values():
            task.cancel()
        await asyncio.gather(*self.busy.values(), return_exceptions=True)
        await self.tower.close()
        await self.web.aclose()


def _embeds(row: Json) -> bool:
    # word vectors are planned as a small model with a cache
    return bool(row.get("pooling")) or row["model"] == "bundled:wordllama"


def console_of(request: Request) -> Console:
    """The console that answers this request."""
    found: Console = request.app.state.console
    return found


def session_of(request: Request) -> Session:
    """The session that the door found."""
    session: Session = request.state.session
    return session


async def form_of(request: Request) -> dict[str, list[str]]:
    """A posted form; names without a value are left out."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_FORM_BYTES:
            return {}
    return parse_qs(body.decode("utf-8", "replace"))


def back(path: str) -> RedirectResponse:
    """See other: a reload of the page sends nothing again."""
    return RedirectResponse(path, 303)
