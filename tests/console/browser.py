"""Headless Chromium, driven by its own protocol over a websocket: no driver program, no test framework."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import websockets

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--hide-scrollbars", "--remote-debugging-port=0",
)  # fmt: skip
_WAIT_SECONDS = 60.0


def chromium() -> str | None:
    """The program, where it is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Page:
    """One tab. ``urls`` is every address that it asked for, ``troubles`` what its console complained about."""

    def __init__(self, socket: websockets.ClientConnection, base: str) -> None:
        self._socket = socket
        self.base = base
        self.urls: list[str] = []
        self.troubles: list[str] = []
        self._next = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._loaded = asyncio.Event()

    async def read(self) -> None:
        """Sort what the browser says, until it ends."""
        async for text in self._socket:
            message = json.loads(text)
            waiting = self._answers.pop(message.get("id", -1), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
            elif "method" in message:
                self._note(message["method"], message["params"])

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.urls.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self._loaded.set()
        elif method == "Runtime.exceptionThrown":
            self.troubles.append(params["exceptionDetails"]["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.troubles.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    async def send(self, method: str, **params: Any) -> Any:
        """One command of the protocol."""
        self._next += 1
        waiting = self._answers[self._next] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"id": self._next, "method": method, "params": params}))
        message = await asyncio.wait_for(waiting, _WAIT_SECONDS)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        found = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script[:200]}: {found['exceptionDetails']['exception'].get('description')}")
        return found["result"].get("value")

    async def open(self, path: str) -> None:
        """Go to a page of the console and wait until it is loaded."""
        self._loaded.clear()
        await self.send("Page.navigate", url=self.base + path)
        await asyncio.wait_for(self._loaded.wait(), _WAIT_SECONDS)

    async def until(self, condition: str) -> None:
        """Wait for a condition in the page, also over the change to another page."""
        script = f"""new Promise((done) => {{
            const end = Date.now() + 2000;
            const look = () => {{
                let found = false;
                try {{ found = document.readyState === "complete" && !!({condition}); }} catch {{ }}
                if (found || Date.now() > end) done(found); else setTimeout(look, 20);
            }};
            look();
        }})"""
        async with asyncio.timeout(_WAIT_SECONDS):
            while True:
                try:
                    if await self.run(script):
                        return
                except RuntimeError:  # the page was left while the condition was looked at
                    continue

    async def fill(self, selector: str, text: str) -> None:
        """Put text into a field."""
        await self.run(f"document.querySelector({json.dumps(selector)}).value = {json.dumps(text)}")

    async def click(self, selector: str) -> None:
        """Click what is there; fails when it is not."""
        await self.run(f"document.querySelector({json.dumps(selector)}).click()")

    async def press(self, key: str) -> None:
        """A key on the keyboard."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27}
        more = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            await self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=codes[key], **more)

    async def text(self, selector: str = "main") -> str:
        """What can be read there."""
        return str(await self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def theme(self, scheme: str) -> None:
        """The browser's wish: ``light`` or ``dark``."""
        await self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def size(self, width: int, height: int, *, mobile: bool = False) -> None:
        """The window."""
        scale = 2 if mobile else 1
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )

    async def picture(self, path: Path, *, full: bool = False) -> None:
        """A screenshot as PNG."""
        found = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(found["data"]))


@asynccontextmanager
async def browser(program: str, folder: Path, base: str) -> AsyncIterator[Page]:
    """Chromium with one empty tab and a profile of its own."""
    flags = (*FLAGS, f"--user-data-dir={folder}", "about:blank")
    process = await asyncio.create_subprocess_exec(
        program, *flags, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    assert process.stderr is not None
    drain = None
    try:
        address = await asyncio.wait_for(_address(process.stderr), _WAIT_SECONDS)
        drain = asyncio.create_task(process.stderr.read())
        async with websockets.connect(await _tab(address), max_size=None, proxy=None) as socket:
            page = Page(socket, base)
            reading = asyncio.create_task(page.read())
            for domain in ("Page", "Network", "Runtime", "Log"):
                await page.send(f"{domain}.enable")
            try:
                yield page
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
    finally:
        process.terminate()
        await process.wait()
        if drain is not None:
            await drain


async def _address(stderr: asyncio.StreamReader) -> str:
    async for line in stderr:
        if b"DevTools listening on" in line:
            return line.split()[-1].decode()
    raise RuntimeError("Chromium ended before it listened")


async def _tab(address: str) -> str:
    """The first tab's own address, asked over the browser's."""
    async with websockets.connect(address, max_size=None, proxy=None) as socket:
        await socket.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
        found = json.loads(await socket.recv())["result"]["targetInfos"]
    target = next(info["targetId"] for info in found if info["type"] == "page")
    return f"{address.partition('/devtools/')[0]}/devtools/page/{target}"
