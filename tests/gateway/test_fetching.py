"""Images behind URLs: the gateway fetches them from allowed public addresses, and engines only ever get data."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from lmtower.gateway import fetching
from lmtower.wire.faults import Fault
from tests.fakes.engine import FakeEngine
from tests.gateway.support import Running, running

EYES: dict[str, Any] = {"eyes": {"engine": "big", "images": {"max_bytes": 5000}}}


def png(side: int = 8) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), "teal").save(out, "PNG")
    return out.getvalue()


@asynccontextmanager
async def web(answer: bytes, *, chunked: bool = False) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A web server that answers everything the same; (port, the requests that came)."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()


def page(body: bytes, media_type: str = "image/png", status: str = "200 OK", *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-type: {media_type}", f"content-length: {len(body)}", *more, "", ""]
    return "\r\n".join(lines).encode() + body


async def see(tower: Running, url: str) -> httpx.Response:
    return await tower.chat(
        "eyes", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    )


async def test_allowed_image_reaches_the_engine_as_data(tmp_path: Path) -> None:
    """In chat, messages and responses; nothing of the client's request goes to the web server."""
    async with web(page(png())) as (port, seen):
        url = f"http://127.0.0.1:{port}/a%20b.png?x=1"
        with FakeEngine() as engine:
            settings = {"image_urls": [f"127.0.0.1:{port}"]}
            async with running(tmp_path, engine, personas=EYES, gateway=settings) as tower:
                assert (await see(tower, url)).status_code == 200
                block = {"type": "image", "source": {"type": "url", "url": url}}
                said = [{"role": "user", "content": [block]}]
                message = {"model": "eyes", "max_tokens": 5, "messages": said}
                assert (await tower.client.post("/v1/messages", json=message)).status_code == 200
                item = {"role": "user", "content": [{"type": "input_image", "image_url": url}]}
                asked = {"model": "eyes", "input": [item]}
                assert (await tower.client.post("/v1/responses", json=asked)).status_code == 200
            chat, messages, responses = (r.json for r in engine.requests if r.method == "POST")
    data = base64.b64encode(png()).decode()
    assert chat["messages"][0]["content"][0]["image_url"]["url"] == f"data:image/png;base64,{data}"
    source = {"type": "base64", "media_type": "image/png", "data": data}
    assert messages["messages"][0]["content"][0]["source"] == source
    assert responses["input"][0]["content"][0]["image_url"] == f"data:image/png;base64,{data}"
    assert seen[0].startswith(b"GET /a%20b.png?x=1 HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"uthorization" not in seen[0]


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (page(b"", "text/html", "302 Found", "location: http://127.0.0.1/"), 400, "redirect"),
        (page(b"no", "text/html", "404 Not Found"), 400, "404"),
        (page(b"<html>", "text/html"), 400, "no image"),
        (page(b"<html>", "image/png"), 400, "no image"),
        (page(png(), "image/png")[:-4], 400, "only in part"),
        (page(b"x" * 6000, "image/png"), 413, "larger than 5000"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n" + b"x" * 6000, 413, "larger than 5000"),
        (b"SSH-2.0-OpenSSH\r\n", 400, "could not be fetched"),
    ],
)
async def test_what_is_not_a_small_image_is_refused(tmp_path: Path, answer: bytes, status: int, words: str) -> None:
    """Redirects, errors, pages, pieces, endless bodies, other protocols: the engine never hears of them."""
    async with web(answer) as (port, _):
        with FakeEngine() as engine:
            settings = {"image_urls": [f"127.0.0.1:{port}"]}
            async with running(tmp_path, engine, personas=EYES, gateway=settings) as tower:
                refused = await see(tower, f"http://127.0.0.1:{port}/a.png")
            assert not [request for request in engine.requests if request.method == "POST"]
    assert refused.status_code == status
    assert words in refused.json()["error"]["message"]


async def test_slow_image_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A web server that never answers costs a request ten seconds, no more."""
    monkeypatch.setattr(fetching, "SECONDS", 0.05)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with FakeEngine() as engine:
        async with running(tmp_path, engine, personas=EYES, gateway={"image_urls": [f"127.0.0.1:{port}"]}) as tower:
            refused = await see(tower, f"http://127.0.0.1:{port}/a.png")
    server.close()
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "image_not_fetched")


def names(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Make every host name lead to these addresses."""

    async def answers(self: Any, host: str, port: int, **_: Any) -> list[Any]:
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(family[":" in one], socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    monkeypatch.setattr(type(asyncio.get_running_loop()), "getaddrinfo", answers)


PRIVATE = ["127.0.0.1", "10.1.2.3", "192.168.0.9", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1"]
PRIVATE += ["::1", "fe80::1", "fd00::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "::"]


@pytest.mark.parametrize("address", PRIVATE)
async def test_name_that_leads_into_the_private_network_is_refused(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """An allowed name says nothing about where it leads today, in whatever spelling of an address."""
    names(monkeypatch, address)
    with pytest.raises(Fault) as caught:
        await fetching.locate("https://pictures.example/a.png", ["pictures.example"])
    assert caught.value.code == "image_url_not_allowed"


async def test_private_address_is_used_when_the_list_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The camera in the own network: its name and its address, or its network, are written down."""
    names(monkeypatch, "192.168.0.9")
    for entry in ("192.168.0.9", "192.168.0.0/24"):
        found = await fetching.locate("http://nas.lan/a.png", ["nas.lan", entry])
        assert (found.address, found.port) == ("192.168.0.9", 80)


async def test_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several addresses only a public one is used, and the name is not looked up again."""
    names(monkeypatch, "10.0.0.1", "93.184.216.34")
    found = await fetching.locate("https://pictures.example/a.png?b=c", ["pictures.example"])
    assert (found.address, found.host, found.path) == ("93.184.216.34", "pictures.example", "/a.png?b=c")
    assert found.tls is not None
    assert found.tls.check_hostname


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/",
        "http://pictures.example:22/",
        "http://user:x@pictures.example/",
        "ftp://pictures.example/",
        "file:///etc/passwd",
        "http://pictures.example.evil.org/",
        "http://evil.org\\@pictures.example/",
        "//pictures.example/",
        "http://",
        "http://[::1",
    ],
)
async def test_url_that_the_list_does_not_name_is_refused(url: str) -> None:
    """Other hosts, ports, schemes and tricks."""
    with pytest.raises(Fault) as caught:
        await fetching.locate(url, ["pictures.example"])
    assert caught.value.code == "image_url_not_allowed"
