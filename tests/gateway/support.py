"""A whole gateway in the test's event loop, on real sockets, in front of fake engines."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from lmtower.config.types import Tower
from lmtower.gateway import Configuration, Gateway, Upstream
from lmtower.ledger import Ledger, UsageRecord
from tests.fakes.engine import FakeEngine

ADMIN_KEY = "admin-key-of-the-test"
PERSONAS: Mapping[str, Any] = {
    "plan": {"engine": "big", "system": "You plan.", "thinking": "on", "temperature": 0.6},
    "fast": {"engine": "big", "thinking": "low", "temperature": 0.2},
    "code": {"engine": "big", "system": "You write code.", "thinking": "on", "temperature": 0.3},
    "agent": {"engine": "big", "thinking": "off", "enforce": {"temperature": 0}, "lane": "agent"},
}


class Running:
    """A gateway that serves, with a key and an HTTP client for it."""

    def __init__(self, gateway: Gateway, base: str, admin: str, key: str, engine: FakeEngine) -> None:
        self.gateway = gateway
        self.base = base
        self.admin = admin
        self.key = key
        self.engine = engine
        self.client = httpx.AsyncClient(base_url=base, headers={"authorization": f"Bearer {key}"}, timeout=20)
        self.operator = httpx.AsyncClient(base_url=admin, headers={"authorization": f"Bearer {ADMIN_KEY}"}, timeout=20)

    @property
    def port(self) -> int:
        return int(self.base.rpartition(":")[2])

    async def chat(self, model: str = "plan", text: str = "hello", **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        return await self.client.post("/v1/chat/completions", json=body)

    async def cut_stream(self, **fields: Any) -> str:
        """The text of a stream that must end with a cut connection."""
        body = {"model": "plan", "messages": [{"role": "user", "content": "x"}], "stream": True, **fields}
        received = b""
        try:
            async with self.client.stream("POST", "/v1/chat/completions", json=body) as answer:
                async for piece in answer.aiter_bytes():
                    received += piece
        except httpx.RemoteProtocolError:
            return received.decode()
        raise AssertionError("the stream looked complete")

    async def records(self, count: int) -> list[UsageRecord]:
        """The latest usage records, once there are ``count`` of them."""
        await until(lambda: len(self.gateway.recent) >= count)
        return list(self.gateway.recent)


async def until(condition: Callable[[], Any], seconds: float = 10) -> None:
    """Let the loop run until the condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the condition lives in code that has no event to wait for
            await asyncio.sleep(0.002)


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """``c.pem`` and ``k.pem`` in the folder, good for ten days."""
    cert, key = folder / "c.pem", folder / "k.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "10", "-subj", f"/CN={name}"]
    subprocess.run([*command, "-out", cert, "-keyout", key], capture_output=True, check=True)
    return cert, key


def tower_of(
    engine: FakeEngine, *, personas: Mapping[str, Any] = PERSONAS, gateway: Mapping[str, Any] | None = None, **more: Any
) -> Tower:
    return Tower.model_validate(
        {
            "gateway": {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", "shutdown_grace": 5, **(gateway or {})},
            "engines": {"big": {"model": engine.models[0], "url": engine.url}},
            "personas": personas,
            **more,
        }
    )


def upstream(engine: FakeEngine, **fields: Any) -> Upstream:
    return Upstream(
        **{"engine": "big", "replica": "big", "url": engine.url, "model": engine.models[0], "slots": 8, **fields}
    )


@asynccontextmanager
async def running(
    folder: Path,
    engine: FakeEngine,
    *,
    upstreams: list[Upstream] | None = None,
    configure: Callable[[], Configuration] | None = None,
    tower: Tower | None = None,
    ledger: Ledger | None = None,
    key: str | None = None,
    **parts: Any,
) -> AsyncIterator[Running]:
    """A gateway in front of ``engine``. ``ledger`` and ``key`` are those of others; ``parts`` go to ``tower_of``."""
    tower = tower or tower_of(engine, **parts)
    ledger = ledger or Ledger.open(folder)
    key = key or ledger.create_key("tester").secret
    configuration = Configuration(tower, upstreams or [upstream(engine)])
    gateway = Gateway(configuration, ledger, folder, admin_key=ADMIN_KEY, configure=configure)
    (host, port), (admin_host, admin_port) = await gateway.start()
    found = Running(gateway, f"http://{host}:{port}", f"http://{admin_host}:{admin_port}", key, engine)
    try:
        yield found
    finally:
        await found.client.aclose()
        await found.operator.aclose()
        await gateway.stop()


def events(text: str) -> list[dict[str, Any]]:
    """The JSON events of a stream, without ``[DONE]`` and comments."""
    lines = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]
