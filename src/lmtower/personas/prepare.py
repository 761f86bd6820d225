"""One request made ready for its engine: path, body pieces and the reply that reads the way back.

A preparer per protocol; ``PREPARERS`` maps the protocol's name to it. A preparer gets the split body, which it
may edit, and raises ``Fault`` for what the client must put right.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from lmtower.personas import autocomplete, discipline, native, vectors
from lmtower.personas.compile import CompiledPersona
from lmtower.personas.prepared import Prepared, Preparer
from lmtower.personas.rules import Trace, apply_common, ask_for_usage
from lmtower.personas.stopping import limit_stops
from lmtower.wire import top as tops
from lmtower.wire.chat import ChatReply, merge_system
from lmtower.wire.faults import Fault
from lmtower.wire.reply import Reply
from lmtower.wire.top import Piece, Top


def prepare_chat(top: Top, persona: CompiledPersona, asked: str, request_id: str, trace: Trace | None) -> Prepared:
    """``/v1/chat/completions``: the prompt goes into the first system message."""
    messages = top.get("messages")
    if messages is None:
        raise Fault(400, "missing_field", "The field 'messages' is missing.", param="messages")
    stream = tops.flag(top, "stream")
    apply_common(top, persona, trace)
    if persona.tools == "off" and tops.given(top, "tools"):
        raise Fault(400, "tools_not_supported", f"The model {asked!r} does not take tools.", param="tools")
    wants_usage = ask_for_usage(top, trace) if stream else False
    reply: Reply = ChatReply(persona.served, asked, request_id, wants_usage)
    if "stop" in top:
        reply = limit_stops(top, reply, persona.most_stops, trace)
    pieces: list[Piece]
    if persona.prompt_json is None:
        pieces = tops.join(top)
    else:
        merged = merge_system(memoryview(messages), persona.prompt_json)
        if trace is not None:
            trace.append(("messages", "the persona's system prompt goes first, into the first system message"))
        if len(messages) < tops.SHORT:
            top["messages"] = msgspec.Raw(b"".join(merged))
            pieces = tops.join(top)
        else:
            del top["messages"]
            pieces = tops.join_long(top, messages=merged)
    return Prepared("/v1/chat/completions", pieces, stream, reply)


PREPARERS: Mapping[str, Preparer] = MappingProxyType(
    {
        "chat": prepare_chat,
        "completions": autocomplete.prepare_completions,
        "fim": autocomplete.prepare_fim,
        "infill": autocomplete.prepare_infill,
        "messages": native.prepare_messages,
        "count_tokens": native.prepare_count,
        "responses": native.prepare_responses,
        "embeddings": vectors.prepare_embeddings,
        "rerank": vectors.prepare_rerank,
        "rerank_v2": vectors.prepare_rerank_v2,
    }
)


def prepare(
    protocol: str, top: Top, persona: CompiledPersona, asked: str, request_id: str, trace: Trace | None = None
) -> Prepared:
    """Make one request ready. ``asked`` is the model's name as the client wrote it. Raises Fault."""
    try:
        discipline.apply(protocol, top, persona, trace)
        return PREPARERS[protocol](top, persona, asked, request_id, trace)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # the body was read at its top level only: what is broken deeper inside shows where a rule looks into it
        raise Fault(400, "invalid_json", "The request body holds broken JSON or text that is not UTF-8.") from None
