"""The console in real headless Chromium: a walk through it, accessibility in both themes, a phone, no other origin."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.console.browser import Page, browser, chromium
from tests.console.support import Consoled, consoled
from tests.console.test_pages import store_service
from tests.fakes.engine import FakeEngine
from tests.gateway.support import ADMIN_KEY, until

CHROMIUM = chromium()
AXE = "axe-core@4"
CACHE = Path(__file__).resolve().parents[2] / ".cache/axe"
PAGES = ("/", "/personas", "/personas/plan", "/clients", "/engines", "/requests", "/stores")
PICTURES = os.environ.get("LMTOWER_TEST_PICTURES")
"""A folder that keeps the screenshots, to look at them."""

pytestmark = [
    pytest.mark.tools,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


@asynccontextmanager
async def open_console(tmp_path: Path, engine: FakeEngine, **more: Any) -> AsyncIterator[tuple[Consoled, Page]]:
    """A console, and a browser that is logged in to it."""
    async with (
        consoled(tmp_path, engine, **more) as console,
        browser(str(CHROMIUM), tmp_path / "profile", console.base) as page,
    ):
        await page.size(1280, 900)
        await page.open("/")
        await page.fill("#key", ADMIN_KEY)
        await page.click("form button")
        await page.until("document.querySelector('.tiles')")
        yield console, page
        # whatever was done: the console asked nobody but itself, and no script or policy complained
        # (the browser draws the picture of a date field itself, from a data: address)
        asked = {urlsplit(url).netloc for url in page.urls if not url.startswith("data:")}
        assert asked == {urlsplit(console.base).netloc}


async def keep(page: Page, tmp_path: Path, name: str) -> Path:
    """A screenshot."""
    folder = Path(PICTURES) if PICTURES else tmp_path
    await page.picture(folder / f"{name}.png")
    return folder / f"{name}.png"


async def test_walk_from_login_to_revoked_client(tmp_path: Path) -> None:
    """Log in, create a client, send a prompt, watch the tile, see the request, limit the client, revoke it."""
    with FakeEngine() as engine:
        engine.script(text="It is tall.", input_tokens=100, cached_tokens=64)
        async with open_console(tmp_path, engine) as (console, page):
            await page.open("/clients")
            await page.fill("#name", "frigate")
            await page.run("document.querySelector('form[action=\"/clients\"]').requestSubmit()")
            await page.until("document.querySelector('#new-key')?.textContent.startsWith('sk-lmt-')")
            key = await page.run("document.querySelector('#new-key').textContent")
            headers = {"authorization": f"Bearer {key}"}
            assert (await console.tower.client.get("/v1/models", headers=headers)).status_code == 200

            await page.open("/personas/fast")
            await page.fill("#prompt", "What is a tower?")
            await page.click("[data-send]")
            await page.until("document.querySelector('[data-try]').dataset.state === 'done'")
            assert await page.text("[data-answer]") == "It is tall."
            assert await page.text("[data-input]") == "100 tokens"
            assert await page.text("[data-cached]") == "64 tokens (64 %)"
            assert (await page.text("[data-ttft]")).endswith("s")

            await page.open("/")
            tile = "[...document.querySelectorAll('.tile')].find(t => t.innerText.startsWith('Requests'))"
            shown = f"Number({tile}.querySelector('.value').innerText)"
            await page.until(f"{shown} === 1")
            await page.run("window.stays = true")  # the tile changes without a new page
            await console.tower.chat("fast")
            await page.until(f"window.stays && {shown} === 2")

            await page.open("/requests")
            await page.until("document.querySelectorAll('.waterfall tbody tr').length === 2")
            rows = await page.text(".waterfall tbody")
            assert "console" in rows
            assert "tester" in rows
            assert await page.run("document.querySelectorAll('.waterfall rect.decode').length") == 1

            await page.open("/clients")
            await page.click("a[aria-label='Change frigate']")
            await page.until("document.querySelector('#change')")
            await page.fill("#requests_per_minute", "1")
            await page.run("document.querySelector('#change form').requestSubmit()")
            await page.until("document.querySelector('.notice')?.innerText.startsWith('Saved.')")
            assert "1 requests a minute" in await page.text("main")
            body = {"model": "fast", "messages": [{"role": "user", "content": "x"}]}
            asked = [await console.tower.client.post("/v1/chat/completions", json=body, headers=headers) for _ in "ab"]
            assert [answer.status_code for answer in asked] == [200, 429]

            await page.open("/clients")
            await page.click("button[aria-label='Revoke frigate']")
            await page.until("document.querySelector('dialog').open")
            await page.press("Escape")  # not yet
            await page.until("!document.querySelector('dialog').open")
            await page.click("button[aria-label='Revoke frigate']")
            await page.until("document.querySelector('dialog').open")
            await page.press("Tab")
            await page.press("Enter")
            await page.until("document.querySelector('.notice')?.innerText === 'The key is revoked.'")
            assert (await console.tower.client.get("/v1/models", headers=headers)).status_code == 401
            assert page.troubles == []


async def test_keyboard_reaches_the_content_first(tmp_path: Path) -> None:
    """The first stop of the Tab key skips the menu; the menu says where one is."""
    with FakeEngine() as engine:
        async with open_console(tmp_path, engine) as (_, page):
            await page.open("/personas")
            await page.press("Tab")
            assert await page.run("document.activeElement.innerText") == "Skip to the content"
            await page.press("Enter")
            assert await page.run("location.hash") == "#main"
            assert await page.text("nav [aria-current=page]") == "Personas"


async def test_explanation_shows_the_prompt_only_on_request(tmp_path: Path) -> None:
    """Masked first; the box reveals it."""
    with FakeEngine() as engine:
        async with open_console(tmp_path, engine) as (_, page):
            await page.open("/personas/plan")
            await page.fill("#prompt", "x")
            await page.click("[data-explain]")
            await page.until("document.querySelector('[data-body]').innerText.includes('messages')")
            assert "You plan." not in await page.text("[data-body]")
            await page.click("[data-reveal]")
            await page.until("document.querySelector('[data-body]').innerText.includes('You plan.')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_pages_have_no_serious_accessibility_finding(tmp_path: Path, scheme: str, axe: str) -> None:
    """axe-core's rules (contrast, labels, names, structure) on every page, in both themes."""
    with FakeEngine() as engine:
        engine.script(text="It is tall.", input_tokens=100, cached_tokens=64)
        async with open_console(tmp_path, engine) as (console, page):
            await page.theme(scheme)
            await console.tower.chat("fast")
            await until(lambda: console.console.watch.recent.window(60) is not None)
            found = {}
            identity = (await console.tower.operator.get("/admin/keys")).json()["keys"][0]["id"]
            for path in (*PAGES[:-1], f"/clients/{identity}"):
                await page.open(path)
                found[path] = await findings(page, axe)
                await keep(page, tmp_path, f"{path.strip('/').replace('/', '-') or 'overview'}-{scheme}")
            await page.send("Network.clearBrowserCookies")
            await page.open("/login")
            found["/login"] = await findings(page, axe)
    assert {path: bad for path, bad in found.items() if bad} == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_stores_pages_have_no_serious_finding_and_fit_a_phone(tmp_path: Path, scheme: str, axe: str) -> None:
    """The list, a store with a search and a failed file: axe in both themes, no sideways scrolling."""
    with FakeEngine() as engine:
        async with open_console(tmp_path, engine, stores_url="http://stores") as (console, page):
            (console.folder / "internal.key").write_text("inner\n")
            console.console.web = httpx.AsyncClient(transport=httpx.ASGITransport(store_service()))
            await page.theme(scheme)
            found, widths = {}, set()
            for path in ("/stores", "/stores/vs_1?q=pump"):
                await page.size(1280, 900)
                await page.open(path)
                assert "handbook" in await page.text()
                found[path] = await findings(page, axe)
                await page.size(390, 844, mobile=True)
                widths.add(await page.run("document.documentElement.scrollWidth"))
    assert found == {"/stores": [], "/stores/vs_1?q=pump": []}
    assert widths == {390}


async def findings(page: Page, axe: str) -> list[str]:
    """Serious and critical findings of axe-core on this page."""
    await page.run(f"{axe}; true")
    text = await page.run("axe.run().then((found) => JSON.stringify(found.violations))")
    return [
        f"{one['id']}: {node['html'][:120]} {node['failureSummary'][:160]}"
        for one in json.loads(text)
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


async def test_phone_shows_every_page_without_sideways_scrolling(tmp_path: Path) -> None:
    """390 points wide: tables scroll in themselves, the page does not."""
    with FakeEngine() as engine:
        async with open_console(tmp_path, engine) as (console, page):
            await console.tower.chat("fast")
            await page.size(390, 844, mobile=True)
            widths = {}
            for path in PAGES[:-1]:
                await page.open(path)
                widths[path] = await page.run("document.documentElement.scrollWidth")
                await keep(page, tmp_path, f"{path.strip('/').replace('/', '-') or 'overview'}-phone")
    assert widths == dict.fromkeys(PAGES[:-1], 390)


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's script, fetched with npm once and kept in the cache folder."""
    script = CACHE / "package/axe.min.js"
    if not script.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm is not installed")
        asyncio.run(_fetch(npm))
        with tarfile.open(next(CACHE.glob("axe-core-*.tgz"))) as packed:
            packed.extract("package/axe.min.js", CACHE, filter="data")
    return script.read_text("utf-8")


async def _fetch(npm: str) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    process = await asyncio.create_subprocess_exec(npm, "pack", AXE, "--silent", cwd=CACHE)
    assert await asyncio.wait_for(process.wait(), 120) == 0
