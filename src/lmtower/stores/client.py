"""A client of the Files and Vector Stores APIs, for the CLI: of the service on the tower, of any gateway elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from lmtower.errors import StoreError

Json = dict[str, Any]


def verified(url: str) -> bool:
    """Whether a certificate has to fit the address: one of this machine's own gateway names another host."""
    return not url.startswith(("https://127.", "https://[::1]", "https://localhost"))


def told(response: httpx.Response) -> str:
    """What an error says."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]


class Declined(StoreError):
    """What was sent will not do, now or later. Anything else may do."""


class StoreClient:
    """``url`` with ``headers`` that say who asks. Errors become StoreError with the service's own words."""

    def __init__(self, url: str, headers: Mapping[str, str], transport: httpx.BaseTransport | None = None) -> None:
        self._url = url
        timeout = httpx.Timeout(600, connect=5)
        self._client = httpx.Client(
            base_url=url,
            headers=dict(headers),
            timeout=timeout,
            trust_env=False,
            transport=transport,
            verify=verified(url),
        )

    def __enter__(self) -> StoreClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def call(self, method: str, path: str, **request: Any) -> Json:
        try:
            response = self._client.request(method, path, **request)
        except httpx.HTTPError as exc:
            raise StoreError(f"no store service answers at {self._url}: is the tower running?") from exc
        if response.is_success:
            answer: Json = response.json()
            return answer
        message = told(response)
        if response.status_code in (400, 413):
            raise Declined(message)
        raise StoreError(f"{method} {path}: HTTP {response.status_code}: {message}")

    def pages(self, path: str, **params: Any) -> Iterator[Json]:
        after: str | None = None
        while True:
            cursor = {"after": after} if after else {}
            page = self.call("GET", path, params={"limit": 100, "order": "asc"} | params | cursor)
            yield from page["data"]
            after = page["last_id"]
            if not page["has_more"]:
                return

    def stores(self) -> list[Json]:
        return list(self.pages("/v1/vector_stores"))

    def find(self, name: str) -> Json:
        """A store by name or id. Raises StoreError when there is none, or several of that name."""
        stores = self.stores()
        found = [store for store in stores if name in (store["id"], store["name"])]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(store["id"] for store in found)
            raise StoreError(f"{len(found)} stores are called {name!r}. Name one by id: {ids}")
        known = ", ".join(sorted(repr(store["name"]) for store in stores)) or "none"
        raise StoreError(f"no store {name!r}. There are: {known}. Make it: lmtower store create {name}")

    def upload(self, path: Path, name: str) -> Json:
        with path.open("rb") as file:
            return self.call("POST", "/v1/files", files={"file": (name, file)}, data={"purpose": "assistants"})

    def attach(self, store_id: str, files: Sequence[Json]) -> Json:
        return self.call("POST", f"/v1/vector_stores/{store_id}/file_batches", json={"files": list(files)})

    def search(self, store_id: str, query: str, limit: int, filters: Json | None = None) -> Json:
        body: Json = {"query": query, "max_num_results": limit} | ({"filters": filters} if filters else {})
        return self.call("POST", f"/v1/vector_stores/{store_id}/search", json=body)
