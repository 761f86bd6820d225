"""The door: which host names, origins and sessions get in, and the headers that every answer carries.

* Host: only names that the operator listed, localhost and plain addresses, so that no web page reaches a loopback
  address through a name of its own (DNS rebinding).
* Origin: what changes something must come from a page of the console itself; the cookie is ``SameSite=Strict``, too.
* Content-Security-Policy: scripts, styles and requests from this origin only, nothing inline.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmtower.console.sessions import COOKIE, Sessions

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
_OPEN = ("/static/", "/login", "/healthz")
_SAFE = ("GET", "HEAD")


class Door:
    """Plain ASGI around the application; the session is handed on as ``scope["state"]["session"]``."""

    def __init__(self, app: ASGIApp, sessions: Sessions, hosts: frozenset[str]) -> None:
        self._app = app
        self._sessions = sessions
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, _with_headers(send, scope["path"]))

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers = Headers(scope=scope)
        if not known_host(headers.get("host", ""), self._hosts):
            return PlainTextResponse("This console does not answer to that host name (see --host).\n", 403)
        if scope["method"] not in _SAFE and not same_origin(headers):
            return PlainTextResponse("This request does not come from a page of the console.\n", 403)
        session = self._sessions.find(cookie_parser(headers.get("cookie", "")).get(COOKIE))
        scope.setdefault("state", {})["session"] = session
        if session is not None or scope["path"].startswith(_OPEN):
            return None
        if scope["method"] in _SAFE and not scope["path"].startswith("/live/"):
            return RedirectResponse("/login", 303)
        return PlainTextResponse("Log in first.\n", 401)


def known_host(host: str, hosts: frozenset[str]) -> bool:
    """Whether a Host header names this console."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost" or name in hosts:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def same_origin(headers: Headers) -> bool:
    """Browsers send Origin with every POST; what has neither Origin nor Sec-Fetch-Site is no browser's form."""
    origin = headers.get("origin")
    if origin is not None:
        return urlsplit(origin).netloc == headers.get("host")
    return headers.get("sec-fetch-site") == "same-origin"


def _with_headers(send: Send, path: str) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(HEADERS)
            headers["cache-control"] = "max-age=3600" if path.startswith("/static/") else "no-store"
        await send(message)

    return wrapped
