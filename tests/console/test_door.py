"""Who gets in: host names, origins, sessions, wrong keys, the headers of every answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.datastructures import Headers

from lmtower.console.door import known_host, same_origin
from lmtower.console.sessions import IDLE_SECONDS, Sessions
from tests.console.support import consoled
from tests.fakes.engine import FakeEngine
from tests.gateway.support import ADMIN_KEY


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost:8083", True), ("127.0.0.1:8083", True), ("[::1]:8083", True), ("tower.lan", True),
        ("evil.example:8083", False), ("127.0.0.1.evil.example", False), ("", False),
    ],
)  # fmt: skip
def test_host_is_known_by_address_or_by_list(host: str, known: bool) -> None:
    """A web page cannot give a loopback address a name of its own."""
    assert known_host(host, frozenset({"tower.lan"})) is known


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({"host": "a:1", "origin": "http://a:1"}, True),
        ({"host": "a:1", "origin": "https://a:1"}, True),
        ({"host": "a:1", "origin": "http://b:1"}, False),
        ({"host": "a:1", "origin": "null"}, False),
        ({"host": "a:1", "sec-fetch-site": "same-origin"}, True),
        ({"host": "a:1", "sec-fetch-site": "same-site"}, False),
        ({"host": "a:1"}, False),
    ],
)
def test_change_must_come_from_a_page_of_the_console(headers: dict[str, str], own: bool) -> None:
    """Origin, else Sec-Fetch-Site, else no."""
    assert same_origin(Headers(headers)) is own


def test_session_ends_when_nobody_comes_back() -> None:
    """Half a day without a look logs out; a look in between keeps it."""
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    name = sessions.open("secret")
    now[0] = IDLE_SECONDS - 1
    assert sessions.find(name) is not None
    now[0] += IDLE_SECONDS - 1
    assert sessions.find(name) is not None
    now[0] += IDLE_SECONDS + 1
    assert sessions.find(name) is None
    assert "secret" not in repr(sessions.find(sessions.open("secret")))


async def test_nobody_sees_a_page_without_the_admin_key(tmp_path: Path) -> None:
    """Pages lead to the login, live parts and changes are refused, a client's key does not open the door."""
    with FakeEngine() as engine:
        async with consoled(tmp_path, engine) as console:
            for path in ("/", "/personas", "/clients", "/clients/usage.csv", "/engines", "/requests", "/stores"):
                answer = await console.web.get(path)
                assert (answer.status_code, answer.headers["location"]) == (303, "/login")
            assert (await console.web.get("/live/overview")).status_code == 401
            assert (await console.post("/clients", name="x")).status_code == 401
            assert (await console.login(console.tower.key)).status_code == 401
            assert (await console.login("ключ")).status_code == 401
            assert (await console.login()).headers["location"] == "/"
            assert (await console.web.get("/")).status_code == 200


async def test_cookie_and_headers_are_strict(tmp_path: Path) -> None:
    """HttpOnly, SameSite=Strict, a policy without inline scripts; nothing of the key in the cookie."""
    with FakeEngine() as engine:
        async with consoled(tmp_path, engine) as console:
            cookie = (await console.login()).headers["set-cookie"]
            assert "HttpOnly" in cookie
            assert "SameSite=strict" in cookie
            assert ADMIN_KEY not in cookie
            answer = await console.web.get("/")
            assert "script-src 'self';" in answer.headers["content-security-policy"]
            assert "unsafe" not in answer.headers["content-security-policy"]
            assert answer.headers["cache-control"] == "no-store"
            assert ADMIN_KEY not in answer.text


async def test_other_sites_cannot_use_the_session(tmp_path: Path) -> None:
    """A form of another origin and a strange host name are refused, even with the cookie."""
    with FakeEngine() as engine:
        async with consoled(tmp_path, engine) as console:
            await console.login()
            evil = {"origin": "http://evil.example"}
            assert (await console.web.post("/clients", data={"name": "x"}, headers=evil)).status_code == 403
            assert (await console.web.post("/clients", data={"name": "x"})).status_code == 403
            assert (await console.web.get("/", headers={"host": "evil.example"})).status_code == 403
            keys = (await console.tower.operator.get("/admin/keys")).json()["keys"]
            assert [key["name"] for key in keys] == ["tester"]


async def test_wrong_keys_are_braked_and_logout_forgets(tmp_path: Path) -> None:
    """After five wrong keys even the right one waits."""
    with FakeEngine() as engine:
        async with consoled(tmp_path, engine) as console:
            await console.login()
            assert (await console.post("/logout")).headers["location"] == "/login"
            assert (await console.web.get("/")).status_code == 303
            answers = [(await console.login("wrong")).status_code for _ in range(6)]
            assert answers == [401] * 5 + [429]
            assert (await console.login()).status_code == 429
