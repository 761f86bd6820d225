"""Rerank: three routes, two reply dialects (Jina's, which vLLM speaks, and Cohere's v2), one engine request."""

from __future__ import annotations

from typing import Any

import msgspec

from lmtower.wire.answers import read_success
from lmtower.wire.faults import Fault
from lmtower.wire.reply import Reply
from lmtower.wire.usage import EngineUsage

MOST_DOCUMENTS = 1000
_encode = msgspec.json.Encoder().encode


def read_documents(given: object) -> list[str]:
    """The documents as texts; clients send strings or ``{"text": …}``. Raises Fault(400)."""
    texts: list[str] = []
    for item in [given] if isinstance(given, str) else given if isinstance(given, list) else []:
        text = item.get("text") if isinstance(item, dict) else item
        if not isinstance(text, str):
            texts.clear()
            break
        texts.append(text)
    if not texts:
        raise _invalid("The field 'documents' must be a list of strings or of objects with a text.")
    if len(texts) > MOST_DOCUMENTS:
        raise _invalid(f"The field 'documents' has {len(texts)} items; at most {MOST_DOCUMENTS} are allowed.")
    return texts


def _invalid(message: str) -> Fault:
    return Fault(400, "invalid_documents", message, param="documents")


class RerankReply(Reply):
    """One rerank answer. ``cohere``: the v2 dialect; ``top_n`` 0 means all; ``documents`` are given back on wish."""

    __slots__ = ("cohere", "documents", "top_n")

    def __init__(
        self,
        served: str,
        asked: str,
        request_id: str,
        *,
        documents: list[str],
        top_n: int = 0,
        cohere: bool = False,
        with_documents: bool = False,
    ) -> None:
        super().__init__(served, asked, request_id)
        self.documents = documents if with_documents else []
        self.top_n = top_n
        self.cohere = cohere

    def body(self, data: bytes) -> bytes:
        """Results by falling score; clients sort by index again where they need to."""
        answer = read_success(data)
        given = answer.get("results")
        if not isinstance(given, list):
            raise Fault(502, "engine_error", "The engine's answer holds no results.")
        if isinstance(answer.get("usage"), dict):
            msgspec.convert(answer["usage"], EngineUsage).into(self.usage)
        self.complete = True
        results = sorted(
            ({"index": int(row["index"]), "relevance_score": float(row["relevance_score"])} for row in given),
            key=lambda row: -row["relevance_score"],
        )
        if self.top_n:
            results = results[: self.top_n]
        return _encode(self._told([self._with_document(row) for row in results], answer))

    def _with_document(self, row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "document": {"text": self.documents[row["index"]]}} if self.documents else row

    def _told(self, results: list[dict[str, Any]], answer: dict[str, Any]) -> dict[str, Any]:
        if self.cohere:
            meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
            return {"id": answer.get("id") or self.request_id, "results": results, "meta": meta}
        used = {"prompt_tokens": self.usage.input_tokens, "total_tokens": self.usage.input_tokens}
        return {
            "id": answer.get("id") or self.request_id,
            "object": "list",
            "model": self.asked,
            "usage": used,
            "results": results,
        }
