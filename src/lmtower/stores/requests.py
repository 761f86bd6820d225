"""What clients may send, checked: bodies and query strings of the API as frozen values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import msgspec

from lmtower.stores.access import PageRequest
from lmtower.stores.faults import invalid
from lmtower.stores.filters import compile_filter
from lmtower.stores.search import Question

AUTO_CHUNK_TOKENS = 512
AUTO_OVERLAP_TOKENS = 64
MAX_BATCH_FILES = 2000
_DRIVE = re.compile(r"[A-Za-z]:")
Short = Annotated[str, msgspec.Meta(max_length=256)]
Query = Annotated[str, msgspec.Meta(min_length=1, max_length=32_000)]
Attributes = Annotated[
    dict[
        Annotated[str, msgspec.Meta(max_length=64)], Annotated[str, msgspec.Meta(max_length=512)] | int | float | bool
    ],
    msgspec.Meta(max_length=16),
]
Metadata = Annotated[
    dict[Annotated[str, msgspec.Meta(max_length=64)], Annotated[str, msgspec.Meta(max_length=512)]],
    msgspec.Meta(max_length=16),
]
Purpose = Literal["assistants", "user_data", "batch", "fine-tune", "vision", "evals"]


class StaticChunking(msgspec.Struct, frozen=True):
    max_chunk_size_tokens: Annotated[int, msgspec.Meta(ge=100, le=4096)]
    chunk_overlap_tokens: Annotated[int, msgspec.Meta(ge=0)]


class Chunking(msgspec.Struct, frozen=True):
    type: Literal["auto", "static"]
    static: StaticChunking | None = None

    def sizes(self) -> tuple[int, int]:
        """Chunk and overlap in tokens."""
        if self.type == "auto" or self.static is None:
            if self.type == "static":
                raise invalid("chunking_strategy.static: is needed for the type 'static'.", "chunking_strategy.static")
            return AUTO_CHUNK_TOKENS, AUTO_OVERLAP_TOKENS
        size, overlap = self.static.max_chunk_size_tokens, self.static.chunk_overlap_tokens
        if overlap > size // 2:
            message = f"chunk_overlap_tokens: {overlap} is more than half of max_chunk_size_tokens, {size}."
            raise invalid(message, "chunking_strategy.static.chunk_overlap_tokens")
        return size, overlap


class ExpiresAfter(msgspec.Struct, frozen=True):
    anchor: Literal["last_active_at"]
    days: Annotated[int, msgspec.Meta(ge=1, le=365)]


class CreateStore(msgspec.Struct, frozen=True):
    name: Short = ""
    description: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    file_ids: list[str] = []
    expires_after: ExpiresAfter | None = None
    chunking_strategy: Chunking | None = None
    metadata: Metadata | None = None
    shared_with: list[Short] = []


class UpdateStore(msgspec.Struct, frozen=True):
    name: Short | msgspec.UnsetType | None = msgspec.UNSET
    expires_after: ExpiresAfter | msgspec.UnsetType | None = msgspec.UNSET
    metadata: Metadata | msgspec.UnsetType | None = msgspec.UNSET
    shared_with: list[Short] | msgspec.UnsetType = msgspec.UNSET


class AttachFile(msgspec.Struct, frozen=True):
    file_id: str
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None

    def values(self) -> dict[str, Any]:
        size, overlap = (self.chunking_strategy or Chunking("auto")).sizes()
        attributes = self.attributes or {}
        return {"file_id": self.file_id, "attributes": attributes, "chunk_tokens": size, "overlap_tokens": overlap}


class CreateBatch(msgspec.Struct, frozen=True):
    file_ids: list[str] = []
    files: list[AttachFile] = []
    attributes: Attributes | None = None
    chunking_strategy: Chunking | None = None

    def items(self) -> list[dict[str, Any]]:
        if bool(self.file_ids) is bool(self.files):
            raise invalid("Give either file_ids or files.", "file_ids")
        files = self.files or [AttachFile(one, self.attributes, self.chunking_strategy) for one in self.file_ids]
        if len(files) > MAX_BATCH_FILES:
            raise invalid(f"{len(files)} files; a batch may have {MAX_BATCH_FILES}.", "file_ids")
        return [one.values() for one in files]


class UpdateFile(msgspec.Struct, frozen=True):
    attributes: Attributes | None


class HybridWeights(msgspec.Struct, frozen=True):
    embedding_weight: Annotated[float, msgspec.Meta(ge=0)]
    text_weight: Annotated[float, msgspec.Meta(ge=0)]


class RankingOptions(msgspec.Struct, frozen=True):
    ranker: Literal["none", "auto", "default-2024-11-15", "default_2024_08_21"] | None = None
    score_threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    hybrid_search: HybridWeights | None = None


class Search(msgspec.Struct, frozen=True):
    query: Query | Annotated[list[Query], msgspec.Meta(min_length=1, max_length=8)]
    max_num_results: Annotated[int, msgspec.Meta(ge=1, le=50)] = 10
    filters: dict[str, Any] | None = None
    ranking_options: RankingOptions | None = None
    rewrite_query: bool = False

    def question(self) -> Question:
        options = self.ranking_options or RankingOptions()
        weights = options.hybrid_search
        if weights and weights.embedding_weight + weights.text_weight <= 0:
            raise invalid("One of the weights must be above 0.", "ranking_options.hybrid_search")
        return Question(
            queries=(self.query,) if isinstance(self.query, str) else tuple(self.query),
            limit=self.max_num_results,
            predicate=compile_filter(self.filters) if self.filters else None,
            threshold=options.score_threshold or 0.0,
            rerank=options.ranker != "none",
            vector_weight=weights.embedding_weight if weights else None,
            words_weight=weights.text_weight if weights else 1.0,
        )


class InternalSearch(Search, frozen=True, kw_only=True):
    """What the gateway asks for ``file_search``: ``stores`` are the persona's, ``vector_store_ids`` the client's."""

    client: str
    key: str = ""
    stores: list[str] = []
    vector_store_ids: list[str] = []


def page_request(query: Mapping[str, str]) -> PageRequest:
    try:
        limit = int(query.get("limit", "20"))
    except ValueError:
        limit = 0
    if not 1 <= limit <= 10_000:
        raise invalid("limit: must be a number from 1 to 10000.", "limit")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise invalid("order: must be 'asc' or 'desc'.", "order")
    after, before = query.get("after") or None, query.get("before") or None
    if after and before:
        raise invalid("Give either after or before.", "before")
    # the SDKs ask for more than 100 and walk on by the cursor: give them at most 100
    return PageRequest(min(limit, 100), order == "desc", after, before)


def file_name(name: str | None) -> str:
    """A relative path of plain names. It is never used as a path here, but others may do so with what we hand out."""
    text = (name or "").replace("\\", "/")
    parts = PurePosixPath(text).parts
    bad = not parts or text.startswith("/") or ".." in parts or len(text) > 1024
    if bad or any(ord(character) < 32 for character in text) or _DRIVE.match(text):
        raise invalid("file: its name must be a relative path without '..' and control characters.", "file")
    return text
