"""A console on a real socket over a whole gateway in front of a fake engine, in the test's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from lmtower.console.app import application
from lmtower.console.console import Console
from lmtower.console.settings import Settings
from tests.fakes.engine import FakeEngine
from tests.gateway.support import ADMIN_KEY, Running, running, until

PLAN: dict[str, Any] = {
    "fits": True,
    "engines": [
        {
            "name": "big", "model": "a/model", "runtime": "vllm", "weights_bytes": 60 << 30, "kv_cache_bytes": 20 << 30,
            "overhead_bytes": 4 << 30, "max_model_len": 200_000, "max_num_seqs": 4,
        }
    ],
    "nodes": [
        {
            "name": "spark", "engines": ["big"], "used_bytes": 84 << 30, "reserve_bytes": 12 << 30,
            "free_bytes": 24 << 30, "facts": {"memory_total_bytes": 120 << 30, "hardware": "dgx-spark"},
        }
    ],
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Consoled:
    """The console's address, the tower behind it, and a browser's worth of HTTP client that is not logged in."""

    base: str
    tower: Running
    web: httpx.AsyncClient
    folder: Path
    console: Console

    async def login(self, key: str = ADMIN_KEY) -> httpx.Response:
        """Log the client in."""
        return await self.post("/login", key=key)

    async def post(self, path: str, **form: Any) -> httpx.Response:
        """A form sent by one of the console's own pages."""
        return await self.web.post(path, data=form, headers={"origin": self.base})


def settings(tower: Running, folder: Path, **more: Any) -> Settings:
    """Those of a console over a running gateway."""
    return Settings(
        admin_url=tower.admin,
        gateway_url=tower.base,
        data_dir=folder,
        read=lambda: tower.gateway.snapshot.tower,
        plan=lambda: PLAN,
        **{"sample_seconds": 0.2, **more},
    )


@asynccontextmanager
async def consoled(folder: Path, engine: FakeEngine, **more: Any) -> AsyncIterator[Consoled]:
    """A console that serves. ``more`` goes to its settings."""
    own = folder / "console"
    own.mkdir()
    async with running(folder / "tower", engine) as tower:
        app = application(settings(tower, own, **more))
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", ws="none")
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        serving = asyncio.create_task(server.serve())
        await until(lambda: server.started)
        base = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        async with httpx.AsyncClient(base_url=base, timeout=20, trust_env=False) as web:
            try:
                yield Consoled(base, tower, web, own, app.state.console)
            finally:
                server.should_exit = True
                await serving
