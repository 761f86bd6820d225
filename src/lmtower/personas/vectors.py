"""Embeddings and rerank made ready: prefixes put in, token arrays turned back into text, batches split."""

from __future__ import annotations

from typing import Any

import msgspec

from lmtower.personas.compile import CompiledPersona
from lmtower.personas.prepared import Prepared
from lmtower.personas.rules import Trace, drop_dangerous
from lmtower.wire import cl100k, embeddings, rerank
from lmtower.wire import top as tops
from lmtower.wire.faults import Fault
from lmtower.wire.top import Piece, Top

_encode = msgspec.json.encode


def prepare_embeddings(
    top: Top, persona: CompiledPersona, asked: str, request_id: str, trace: Trace | None
) -> Prepared:
    """``/v1/embeddings``, in the engine's batches, in the client's format."""
    if "input" not in top:
        raise Fault(400, "missing_field", "The field 'input' is missing.", param="input")
    wanted = tops.text(top, "encoding_format") or "float"
    if wanted not in ("float", "base64"):
        raise Fault(400, "invalid_encoding_format", "Use 'float' or 'base64'.", param="encoding_format")
    dimensions = tops.value(top, "dimensions")
    if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
        raise Fault(400, "invalid_type", "The field 'dimensions' must be a positive whole number.", param="dimensions")
    texts = _texts(tops.value(top, "input"), persona, trace)
    top["model"] = persona.model_json
    drop_dangerous(top, persona, trace)
    top.pop("stream", None)
    bodies: list[list[Piece]] = []
    for batch in embeddings.batches(texts):
        top["input"] = tops.encoded(list(batch))
        bodies.append(tops.join(top))
    reply = embeddings.EmbeddingsReply(
        persona.served, asked, request_id, base64=wanted == "base64", dimensions=dimensions
    )
    return Prepared("/v1/embeddings", bodies[0], False, reply, more=tuple(bodies[1:]))


def _texts(given: object, persona: CompiledPersona, trace: Trace | None) -> list[str]:
    """The inputs as texts. LangChain sends cl100k token ids, which mean something else to the engine's model."""
    prefix = persona.prefix or ""
    texts: list[str] = []
    for item in embeddings.read_inputs(given):
        text = item if isinstance(item, str) else cl100k.decode(item)
        texts.append(prefix + text)
    if prefix and trace is not None:
        trace.append(("input", f"prefix {prefix!r} of the persona"))
    return texts


def prepare_rerank(top: Top, persona: CompiledPersona, asked: str, request_id: str, trace: Trace | None) -> Prepared:
    """``/v1/rerank`` and ``/rerank``: Jina's dialect, which gives documents back unless told not to."""
    return _rerank(top, persona, asked, request_id, trace, cohere=False)


def prepare_rerank_v2(top: Top, persona: CompiledPersona, asked: str, request_id: str, trace: Trace | None) -> Prepared:
    """``/v2/rerank``: Cohere's dialect."""
    return _rerank(top, persona, asked, request_id, trace, cohere=True)


def _rerank(
    top: Top, persona: CompiledPersona, asked: str, request_id: str, trace: Trace | None, *, cohere: bool
) -> Prepared:
    for name in ("query", "documents"):
        if not tops.given(top, name):
            raise Fault(400, "missing_field", f"The field {name!r} is missing.", param=name)
    query = tops.text(top, "query") or ""
    documents = rerank.read_documents(tops.value(top, "documents"))
    wish: Any = tops.value(top, "top_n")
    top_n = wish if type(wish) is int and wish > 0 else 0
    with_documents = tops.flag(top, "return_documents") if "return_documents" in top else not cohere
    top["model"] = persona.model_json
    drop_dangerous(top, persona, trace)
    top["query"], top["documents"] = tops.encoded(query), tops.encoded(documents)
    top.pop("top_n", None)  # all scores come back, so that every dialect can cut them itself
    reply = rerank.RerankReply(
        persona.served,
        asked,
        request_id,
        documents=documents,
        top_n=top_n,
        cohere=cohere,
        with_documents=with_documents,
    )
    return Prepared("/v1/rerank", tops.join(top), False, reply)
