"""Anthropic messages and OpenAI responses made ready: the same persona rules in these protocols' own field names."""

from __future__ import annotations

from typing import Any

import msgspec

from lmtower.personas.compile import CompiledPersona
from lmtower.personas.prepared import Prepared
from lmtower.personas.rules import Trace, apply_common
from lmtower.personas.stopping import limit_stop_sequences
from lmtower.wire import messages, responses, scan, server_tools
from lmtower.wire import top as tops
from lmtower.wire.faults import Fault
from lmtower.wire.top import Top

_MESSAGES_NAMES = {"stop": "stop_sequences"}
_RESPONSES_NAMES = {"max_tokens": "max_output_tokens"}
# an engine that does not know a field of these protocols ignores it, but no field may say two things
_MESSAGES_DROPPED = ("context_management", "betas")


def prepare_messages(top: Top, persona: CompiledPersona, asked: str, request_id: str, trace: Trace | None) -> Prepared:
    """``/v1/messages``: the prompt goes before the client's ``system``."""
    _messages_rules(top, persona, asked, trace)
    stream = tops.flag(top, "stream")
    reply = limit_stop_sequences(
        top, messages.MessagesReply(persona.served, asked, request_id), persona.most_stops, trace
    )
    return Prepared("/v1/messages", tops.join(top), stream, reply)


def prepare_count(top: Top, persona: CompiledPersona, asked: str, request_id: str, trace: Trace | None) -> Prepared:
    """``/v1/messages/count_tokens``: counts what would be sent, the persona's prompt included."""
    _messages_rules(top, persona, asked, trace)
    for name in ("stream", "max_tokens", "stop_sequences"):
        top.pop(name, None)
    reply = messages.CountReply(persona.served, asked, request_id)
    return Prepared("/v1/messages/count_tokens", tops.join(top), False, reply)


def _messages_rules(top: Top, persona: CompiledPersona, asked: str, trace: Trace | None) -> None:
    _need_list(top, "messages")
    if scan.first_item(memoryview(top["messages"])) is None:
        raise Fault(400, "invalid_messages", "The field 'messages' needs at least one message.", param="messages")
    _client_thinking(top, persona, trace)
    apply_common(top, _renamed(persona, _MESSAGES_NAMES), trace)
    _nest(top, "reasoning_effort", "output_config", "effort", trace)
    if persona.tools == "off" and tops.given(top, "tools"):
        raise Fault(400, "tools_not_supported", f"The model {asked!r} does not take tools.", param="tools")
    _runnable_tools(top, trace, anthropic=True)
    system = _raw(top, "system")
    merged = messages.merge_system(system, persona.prompt)
    if merged is None:
        top.pop("system", None)
    elif merged is not system:
        top["system"] = msgspec.Raw(merged)
        _note(trace, "system", "the persona's system prompt goes first; attribution blocks are dropped")
    kept = messages.drop_billing(bytes(top["messages"]))
    if len(kept) != len(top["messages"]):
        top["messages"] = msgspec.Raw(kept)
        _note(trace, "messages", "attribution blocks are dropped")
    for name in _MESSAGES_DROPPED:
        if top.pop(name, None) is not None:
            _note(trace, name, "dropped: no engine has it")


def _client_thinking(top: Top, persona: CompiledPersona, trace: Trace | None) -> None:
    """The client's ``thinking`` field in the model's own switch, unless the persona decides."""
    wish = tops.value(top, "thinking")
    mode = {"enabled": "on", "disabled": "off"}.get(str(wish.get("type"))) if isinstance(wish, dict) else None
    if mode is not None and not persona.thinking and not persona.recipe.thinking:
        return  # no switch is known for this model: the engine may know one
    top.pop("thinking", None)  # adaptive: the model decides
    if persona.thinking or mode is None:
        return
    for key, value in persona.recipe.thinking.get(mode, {}).items():
        mine = tops.value(top, key)
        merged = {**mine, **value} if isinstance(mine, dict) and isinstance(value, dict) else value
        top[key] = tops.encoded(merged)
        _note(trace, key, "the client's thinking mode, by the model's recipe")


def prepare_responses(top: Top, persona: CompiledPersona, asked: str, request_id: str, trace: Trace | None) -> Prepared:
    """``/v1/responses``: the prompt goes into ``instructions``; engines store nothing."""
    if "input" not in top:
        raise Fault(400, "missing_field", "The field 'input' is missing.", param="input")
    if (_raw(top, "input") or b"").lstrip()[:1] not in (b'"', b"["):
        raise Fault(400, "invalid_type", "The field 'input' must be a string or a list of items.", param="input")
    _refuse_state(top)
    apply_common(top, _renamed(persona, _RESPONSES_NAMES), trace)
    _nest(top, "reasoning_effort", "reasoning", "effort", trace)
    if persona.tools == "off" and tops.given(top, "tools"):
        raise Fault(400, "tools_not_supported", f"The model {asked!r} does not take tools.", param="tools")
    own = tops.text(top, "instructions")
    instructions, items = responses.merge_instructions(own, _raw(top, "input"), persona.prompt)
    if instructions is not None:
        top["instructions"] = tops.encoded(instructions)
        _note(trace, "instructions", "the persona's prompt first, then the client's instructions and system items")
    if items is not None:
        top["input"] = msgspec.Raw(items)
    _runnable_tools(top, trace)
    top["store"] = msgspec.Raw(b"false")
    _note(trace, "store", "false: engines keep stored responses in memory for ever")
    reply = responses.ResponsesReply(persona.served, asked, request_id, {"instructions": own})
    return Prepared("/v1/responses", tops.join(top), tops.flag(top, "stream"), reply)


def _refuse_state(top: Top) -> None:
    """What the gateway has not resolved (``gateway.remembered``) no engine can."""
    if tops.given(top, "previous_response_id"):
        raise Fault(
            400,
            "previous_response_not_found",
            "Send the whole conversation in 'input', without 'previous_response_id'.",
            param="previous_response_id",
        )
    if tops.flag(top, "background"):
        raise Fault(400, "not_supported", "Background responses are not supported.", param="background")


def _runnable_tools(top: Top, trace: Trace | None, *, anthropic: bool = False) -> None:
    if not tops.given(top, "tools"):
        return
    _need_list(top, "tools")
    choice = tops.value(top, "tool_choice")
    kept, dropped, holds = server_tools.without(bytes(top["tools"]), choice, anthropic=anthropic)
    if not dropped:
        return
    owner = "Anthropic's" if anthropic else "OpenAI's"
    _note(trace, "tools", f"dropped: only {owner} servers run {', '.join(sorted(set(dropped)))}")
    top["tools"] = msgspec.Raw(kept)
    if not holds and top.pop("tool_choice", None) is not None:
        _note(trace, "tool_choice", "dropped with the tool that it names")
    if kept == b"[]":
        del top["tools"]


def _renamed(persona: CompiledPersona, names: dict[str, str]) -> CompiledPersona:
    """The persona with its sampling fields under the names of this protocol."""
    if not names.keys() & (persona.defaults.keys() | persona.enforced.keys()):
        return persona
    return msgspec.structs.replace(
        persona,
        defaults={names.get(key, key): value for key, value in persona.defaults.items()},
        enforced={names.get(key, key): value for key, value in persona.enforced.items()},
    )


def _nest(top: Top, flat: str, outer: str, inner: str, trace: Trace | None) -> None:
    """Move a flat field that a rule set (``reasoning_effort``) to where this protocol has it."""
    if not tops.given(top, flat):
        return
    effort = tops.value(top, flat)
    top.pop(flat)
    mine = tops.value(top, outer)
    nested: dict[str, Any] = {**(mine if isinstance(mine, dict) else {}), inner: effort}
    top[outer] = tops.encoded(nested)
    _note(trace, outer, f"{flat} under this protocol's name")


def _need_list(top: Top, name: str) -> None:
    raw = _raw(top, name)
    if raw is None:
        raise Fault(400, "missing_field", f"The field {name!r} is missing.", param=name)
    if raw.lstrip()[:1] != b"[":
        raise Fault(400, "invalid_type", f"The field {name!r} must be a list.", param=name)


def _raw(top: Top, name: str) -> bytes | None:
    found = top.get(name)
    return None if found is None else bytes(memoryview(found))


def _note(trace: Trace | None, field: str, rule: str) -> None:
    if trace is not None:
        trace.append((field, rule))
