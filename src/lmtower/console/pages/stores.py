"""Stores: what is in them, which file failed and why, and a search that shows where each hit stands."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lmtower.config.folder import INTERNAL_KEY
from lmtower.console import charts, words
from lmtower.console.console import Console, console_of
from lmtower.console.settings import Json
from lmtower.console.tower import message_of
from lmtower.errors import StoreError

_OPERATOR = "lmtower:operator"
_FILES = 100
_HITS = 8
_STATUSES = ("in_progress", "completed", "failed", "cancelled")
_SHOWN_CHARACTERS = 700


async def listing(request: Request) -> Response:
    """Every client's stores: whoever has the admin key is the operator."""
    console = console_of(request)
    page = await _call(console, "GET", "/v1/vector_stores", params={"limit": 100, "order": "asc"})
    return console.page(request, "stores", stores=[store_row(store) for store in page["data"]])


async def one(request: Request) -> Response:
    """One store with its files and, when something was asked, the hits."""
    console = console_of(request)
    store_id = quote(request.path_params["id"], safe="")
    wanted, question = request.query_params.get("status", ""), request.query_params.get("q", "").strip()
    store = store_row(await _call(console, "GET", f"/v1/vector_stores/{store_id}"))
    asked = {"limit": _FILES, "order": "desc"} | ({"filter": wanted} if wanted in _STATUSES else {})
    files = await _call(console, "GET", f"/v1/vector_stores/{store_id}/files", params=asked)
    names = await _names(console)
    hits: list[Json] = []
    trouble = None
    if question:
        try:
            body = {"query": question, "max_num_results": _HITS}
            answer = await _call(console, "POST", f"/v1/vector_stores/{store_id}/search", json=body)
            hits = [hit_row(hit) for hit in answer["data"]]
        except StoreError as error:
            trouble = str(error)
    return console.page(
        request,
        "store",
        store=store,
        files=[file_row(file, names) for file in files["data"]],
        more=files["has_more"],
        statuses=_STATUSES,
        wanted=wanted,
        question=question,
        hits=hits,
        trouble=trouble,
    )


def store_row(store: Json) -> Json:
    """A store with its progress as a bar."""
    counts = store["file_counts"]
    parts = [
        charts.Part(f"{counts['completed']} ready", counts["completed"], "ready"),
        charts.Part(f"{counts['in_progress']} in work", counts["in_progress"], "work"),
        charts.Part(f"{counts['failed']} failed", counts["failed"], "late"),
    ]
    said = ", ".join(part.name for part in parts if part.size) or "no files"
    return {**store, "said": said, "bar": charts.bar(parts, max(1, counts["total"]), f"Files: {said}", height=8)}


def file_row(file: Json, names: dict[str, str]) -> Json:
    """A file of a store: its name, how far it is, why it failed."""
    progress = file.get("progress") or {}
    attributes = file.get("attributes") or {}
    error = file.get("last_error") or {}
    return {
        "id": file["id"],
        "name": attributes.get("path") or names.get(file["id"]) or file["id"],
        "status": file["status"],
        "error": error.get("message", ""),
        "bytes": file.get("usage_bytes", 0),
        "chunks": progress.get("chunks", 0),
        "embedded": progress.get("embedded", 0),
    }


def hit_row(hit: Json) -> Json:
    """A hit: where it stands, both scores, the beginning of its text."""
    place, scores = hit.get("provenance") or {}, hit.get("scores") or {}
    text = "\n".join(part["text"] for part in hit["content"] if part["type"] == "text")
    where = [str(part) for part in (place.get("heading"),) if part]
    if place.get("page") is not None:
        where.append(f"page {place['page']}")
    if place.get("start") is not None:
        where.append(f"characters {place['start']:,}–{place['end']:,}")
    return {
        "file": (hit.get("attributes") or {}).get("path") or hit["filename"],
        "where": " · ".join(where),
        "text": text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS].rsplit(" ", 1)[0] + " …",
        "score": f"{hit['score']:.3f}",
        "scores": [(name, _score(scores.get(key))) for name, key in _SCORES if scores.get(key) is not None],
    }


_SCORES = (("meaning", "similarity"), ("words", "words"), ("rerank", "rerank"))


def _score(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else words.count(None)


async def _names(console: Console) -> dict[str, str]:
    page = await _call(console, "GET", "/v1/files", params={"limit": 1000, "order": "desc"})
    return {file["id"]: file["filename"] for file in page["data"]}


async def _call(console: Console, method: str, path: str, **more: Any) -> Json:
    secret = console.settings.secret(INTERNAL_KEY)
    url = console.settings.stores_url
    if secret is None or url is None:
        raise HTTPException(404, "This tower has no stores.")
    headers = {"x-lmtower-internal": secret, "x-lmtower-client": _OPERATOR}
    try:
        reply = await console.web.request(method, url + path, headers=headers, **more)
    except httpx.HTTPError as exc:
        raise StoreError(f"the store service at {url} does not answer ({str(exc) or type(exc).__name__}).") from exc
    if not reply.is_success:
        raise StoreError(message_of(reply.status_code, reply.text))
    answer: Json = reply.json()
    return answer


ROUTES = [Route("/stores", listing, methods=["GET"]), Route("/stores/{id}", one, methods=["GET"])]
