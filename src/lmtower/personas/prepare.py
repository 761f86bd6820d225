"""One request made ready for its engine: path, body pieces and the reply that reads the way back.

A preparer per protocol; ``PREPARERS`` maps the protocol's name to it. A preparer gets the split body, which it
may edit, and raises ``Fault`` for what the client must put right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec

from lmtower.personas.compile import CompiledPersona
from lmtower.personas.rules import Trace, apply_common, ask_for_usage
from lmtower.wire import top as tops
from lmtower.wire.chat import ChatReply, merge_system
from lmtower.wire.completions import CompletionReply
from lmtower.wire.faults import Fault
from lmtower.wire.reply import Reply
from lmtower.wire.top import Piece, Top


class Prepared(msgspec.Struct):
    """What is sent upstream and how its answer is read."""

    path: str
    pieces: list[Piece]
    stream: bool
    reply: Reply
    images: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()


Preparer = Callable[[Top, CompiledPersona, str, str, Trace | None], Prepared]
"""(split body, persona, asked model name, request id, trace) -> Prepared"""


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
    pieces: list[Piece]
    if persona.prompt_json is None:
        pieces = tops.join(top)
    else:
        merged = merge_system(memoryview(messages), persona.prompt_json)
        if trace is not None:
            trace.append(("messages", "the persona's system prompt goes first, into the first system message"))
        del top["messages"]
        pieces = tops.join(top)
        pieces[-1:] = [b',"messages":', *merged, b"}"]
    return Prepared("/v1/chat/completions", pieces, stream, ChatReply(persona.served, asked, request_id, wants_usage))


def prepare_completions(
    top: Top, persona: CompiledPersona, asked: str, request_id: str, trace: Trace | None
) -> Prepared:
    """``/v1/completions``: a raw prompt; neither the persona's prompt nor its thinking mode apply."""
    if "prompt" not in top:
        raise Fault(400, "missing_field", "The field 'prompt' is missing.", param="prompt")
    stream = tops.flag(top, "stream")
    apply_common(top, msgspec.structs.replace(persona, thinking={}) if persona.thinking else persona, trace)
    wants_usage = ask_for_usage(top, trace) if stream else False
    reply = CompletionReply(persona.served, asked, request_id, wants_usage)
    return Prepared("/v1/completions", tops.join(top), stream, reply)


PREPARERS: Mapping[str, Preparer] = MappingProxyType({"chat": prepare_chat, "completions": prepare_completions})


def prepare(
    protocol: str, top: Top, persona: CompiledPersona, asked: str, request_id: str, trace: Trace | None = None
) -> Prepared:
    """Make one request ready. ``asked`` is the model's name as the client wrote it. Raises Fault."""
    return PREPARERS[protocol](top, persona, asked, request_id, trace)
