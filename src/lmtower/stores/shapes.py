"""Rows as OpenAI's objects. Pure: the same rows, the same JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row

from lmtower.stores.access import Page, expires_at
from lmtower.stores.search import Hit

Json = dict[str, Any]
Record = Row[Any]
STATUSES = ("in_progress", "completed", "failed", "cancelled")


def file(row: Record) -> Json:
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
        "sha256": row.sha256,
    }


def file_counts(counts: Mapping[str, int]) -> Json:
    return {status: counts.get(status, 0) for status in STATUSES} | {"total": sum(counts.values())}


def store(row: Record, counts: Mapping[str, int], usage_bytes: int, *, expired: bool, own: bool) -> Json:
    working = counts.get("in_progress", 0) > 0
    days = row.expires_days
    return {
        "id": row.id,
        "object": "vector_store",
        "created_at": row.created_at,
        "name": row.name,
        "description": row.description,
        "usage_bytes": usage_bytes,
        "file_counts": file_counts(counts),
        "status": "expired" if expired else "in_progress" if working else "completed",
        "expires_after": None if days is None else {"anchor": "last_active_at", "days": days},
        "expires_at": expires_at(row),
        "last_active_at": row.last_active_at,
        "metadata": row.metadata,
        "embedding_model": row.model,
    } | ({"owner": row.client, "shared_with": row.shared_with} if own else {})


def store_file(row: Record) -> Json:
    error = {"code": row.error_code, "message": row.error_message} if row.error_code else None
    sizes = {"max_chunk_size_tokens": row.chunk_tokens, "chunk_overlap_tokens": row.overlap_tokens}
    return {
        "id": row.file_id,
        "object": "vector_store.file",
        "created_at": row.created_at,
        "vector_store_id": row.store_id,
        "status": row.status,
        "last_error": error,
        "usage_bytes": row.usage_bytes,
        "attributes": row.attributes,
        "chunking_strategy": {"type": "static", "static": sizes},
        "progress": {"chunks": row.chunks, "embedded": row.embedded, "tokens": row.tokens},
    }


def batch(row: Record, counts: Mapping[str, int]) -> Json:
    status = "cancelled" if row.cancelled else "in_progress" if counts.get("in_progress") else "completed"
    if status == "completed" and counts and set(counts) == {"failed"}:
        status = "failed"
    return {
        "id": row.id,
        "object": "vector_store.files_batch",
        "created_at": row.created_at,
        "vector_store_id": row.store_id,
        "status": status,
        "file_counts": file_counts(counts),
    }


def page(page: Page, data: Sequence[Json]) -> Json:
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": list(data), "first_id": first, "last_id": last, "has_more": page.has_more}


def deleted(identity: str, kind: str) -> Json:
    return {"id": identity, "object": f"{kind}.deleted" if kind != "file" else "file", "deleted": True}


def hit(one: Hit) -> Json:
    """OpenAI's five fields, then where the passage stands and how it was found."""
    place = one.passage.place
    return {
        "file_id": one.file_id,
        "filename": one.filename,
        "score": round(one.score, 6),
        "attributes": dict(one.attributes),
        "content": [{"type": "text", "text": one.passage.text}],
        "vector_store_id": one.store_id,
        "provenance": {
            "page": place.page,
            "heading": place.heading,
            "start": place.start,
            "end": place.end,
            "chunk": place.number,
        },
        "scores": {
            "similarity": round(one.passage.similarity, 6),
            "words": round(one.words, 6),
            "standout": None if one.standout is None else round(one.standout, 3),
            "rerank": one.rerank_score,
        },
    }


def results(queries: Sequence[str], hits: Sequence[Hit]) -> Json:
    return {
        "object": "vector_store.search_results.page",
        "search_query": list(queries),
        "data": [hit(one) for one in hits],
        "has_more": False,
        "next_page": None,
    }
