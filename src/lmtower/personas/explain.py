"""What exactly would be sent upstream for a request, and which rule set which field."""

from __future__ import annotations

from typing import Any

import msgspec

from lmtower.personas.compile import CompiledPersona
from lmtower.personas.prepare import prepare
from lmtower.personas.rules import Trace
from lmtower.wire import top as tops

MASK = "<persona prompt, {} characters>"


class Explanation(msgspec.Struct, frozen=True):
    """The upstream request of one client request. ``rules`` are (field, rule) in the order they were applied."""

    url: str
    headers: dict[str, str]
    body: Any
    rules: tuple[tuple[str, str], ...]


def explain(
    protocol: str, body: bytes, persona: CompiledPersona, *, engine_url: str, has_key: bool = False, mask: bool = False
) -> Explanation:
    """Run the request through the very code that serves it.

    ``mask`` replaces the persona's prompt by its length, for readers who may not see it. Raises Fault for a body
    that would be refused.
    """
    trace: Trace = []
    top = tops.split(body)
    asked = tops.text(top, "model") or persona.name
    prepared = prepare(protocol, top, persona, asked, "explain", trace)
    if prepared.local is not None:
        trace.append(("", "answered by the gateway: no engine sees this request"))
        return Explanation("", {}, msgspec.json.decode(prepared.local), tuple(trace))
    raw = b"".join(bytes(memoryview(piece)) for piece in prepared.pieces)
    if mask and persona.prompt_json:
        raw = raw.replace(persona.prompt_json, MASK.format(len(persona.prompt or "")).encode())
    headers = {"content-type": "application/json", "x-request-id": "<id>"}
    if has_key:
        headers["authorization"] = "Bearer <engine key>"
    return Explanation(engine_url.rstrip("/") + prepared.path, headers, msgspec.json.decode(raw), tuple(trace))
