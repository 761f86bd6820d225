"""Login with the admin key, and logout."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from lmtower.console.console import back, console_of, form_of
from lmtower.console.sessions import COOKIE
from lmtower.errors import AdminError


async def show(request: Request) -> Response:
    """The form; somebody with a session goes on to the overview."""
    if request.state.session is not None:
        return back("/")
    return _form(request, "", 200)


async def login(request: Request) -> Response:
    """Ask the tower whether the key is its own."""
    console = console_of(request)
    if not console.sessions.may_try():
        return _form(request, "Too many wrong keys. Wait half a minute.", 429)
    key = (await form_of(request)).get("key", [""])[0].strip()
    try:
        accepted = key.isascii() and key.isprintable() and await console.tower.accepts(key)
    except AdminError as error:
        return _form(request, str(error), 502)
    if not accepted:
        console.sessions.was_wrong()
        return _form(request, "That is not the admin key of this tower.", 401)
    answer = back("/")
    # sessions live in memory: the cookie is a random name, gone when the browser is closed
    secure = request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
    answer.set_cookie(COOKIE, console.sessions.open(key), httponly=True, samesite="strict", secure=secure)
    return answer


async def logout(request: Request) -> Response:
    """Forget the session."""
    console_of(request).sessions.close(request.cookies.get(COOKIE))
    answer = back("/login")
    answer.delete_cookie(COOKIE)
    return answer


def _form(request: Request, problem: str, status: int) -> HTMLResponse:
    return HTMLResponse(console_of(request).text("login.html", problem=problem), status)


ROUTES = [
    Route("/login", show, methods=["GET"]),
    Route("/login", login, methods=["POST"]),
    Route("/logout", logout, methods=["POST"]),
]
