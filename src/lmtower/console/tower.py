"""The tower as the console sees it: its admin API over HTTP. Foreign errors become AdminError here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx

from lmtower.console.settings import Json, Settings
from lmtower.errors import AdminError

_START_SECONDS = 3600.0
_SCRAPE_SECONDS = 2.0


class Tower:
    """One HTTP client for everything but the answers of personas. ``key`` is the admin key of whoever asks."""

    def __init__(self, settings: Settings) -> None:
        self._base = settings.admin_url
        self._client = httpx.AsyncClient(base_url=settings.admin_url, timeout=30, trust_env=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def accepts(self, key: str) -> bool:
        """Whether the tower takes this admin key; it compares in constant time. Raises AdminError."""
        reply = await self._send("GET", "/admin/keys", key)
        return reply.status_code == 200

    async def get(self, key: str, path: str, **query: str | int | float) -> Any:
        """The JSON answer of a GET. Raises AdminError."""
        return self._read(await self._send("GET", path, key, params=query))

    async def post(self, key: str, path: str, body: Json | None = None, seconds: float = 30.0) -> Any:
        """The JSON answer of a POST. Raises AdminError."""
        return self._read(await self._send("POST", path, key, json=body or {}, timeout=seconds))

    async def patch(self, key: str, path: str, body: Json) -> Any:
        """The JSON answer of a PATCH. Raises AdminError."""
        return self._read(await self._send("PATCH", path, key, json=body))

    async def delete(self, key: str, path: str) -> Any:
        """The JSON answer of a DELETE. Raises AdminError."""
        return self._read(await self._send("DELETE", path, key))

    async def engine(self, key: str, engine: str, action: str) -> None:
        """Start, stop or restart; returns when it is done, which for a large model takes minutes."""
        await self.post(key, f"/admin/engines/{quote(engine, safe='')}/{action}", seconds=_START_SECONDS)

    async def log(self, key: str, engine: str, lines: int = 200) -> str:
        """The last lines that an engine wrote."""
        answer = await self.get(key, f"/admin/engines/{quote(engine, safe='')}/logs", lines=lines)
        return str(answer["log"])

    async def metrics(self) -> str:
        """The gateway's own metrics page."""
        return (await self._send("GET", "/metrics", None)).text

    async def scrape(self) -> list[tuple[Mapping[str, str], str]]:
        """The metrics pages of engines and node agents, with their labels; those that do not answer are left out."""
        groups: list[Json] = await self.get("", "/admin/targets")
        wanted = [
            (group["labels"], address)
            for group in groups
            for address in group["targets"]
            if group["labels"]["job"] != "lmtower"
        ]
        pages = await asyncio.gather(*(self._page(labels, address) for labels, address in wanted))
        return [(labels, page) for (labels, _), page in zip(wanted, pages, strict=True) if page is not None]

    async def _page(self, labels: Mapping[str, str], address: str) -> str | None:
        scheme, path = labels.get("__scheme__", "http"), labels.get("__metrics_path__", "/metrics")
        try:
            reply = await self._client.get(f"{scheme}://{address}{path}", timeout=_SCRAPE_SECONDS)
        except httpx.HTTPError:
            return None
        return reply.text if reply.status_code == 200 else None

    async def _send(self, method: str, path: str, key: str | None, **more: Any) -> httpx.Response:
        headers = {} if not key else {"authorization": f"Bearer {key}"}
        try:
            return await self._client.request(method, path, headers=headers, **more)
        except httpx.HTTPError as exc:
            raise AdminError(f"no tower answers on {self._base} ({exc or type(exc).__name__}).") from exc

    def _read(self, reply: httpx.Response) -> Any:
        if reply.is_success:
            return reply.json()
        raise AdminError(message_of(reply.status_code, reply.text))


def message_of(status: int, body: str) -> str:
    """The words of an error body, whatever its shape."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return f"HTTP {status}: {body[:200]}"
