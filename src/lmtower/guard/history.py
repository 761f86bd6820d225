"""Broken tool calls in replayed history, mended so that one bad turn cannot poison a conversation.

Chat templates parse the arguments of earlier calls; one that is not a JSON object makes every later request
of that conversation fail. Only a message that holds such a call is written anew: all others keep their bytes,
and with them their place in the prefix cache. One function per dialect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from lmtower.guard.repair import as_object, decode
from lmtower.wire import top as tops
from lmtower.wire.items import (
    ABSENT,
    Call,
    Input,
    Item,
    Items,
    Message,
    Object,
    Text,
    Turn,
    read_chat,
    read_messages,
    read_responses,
)

Cleaner = Callable[[dict[str, Any]], bool]
"""Changes one message in place; True when it did."""
Suspect = Callable[[Any], bool]
"""Whether a message needs a closer look. Long histories are sound: reading them whole would cost more than all else."""


def mended(protocol: str, body: bytes) -> bytes:
    """A whole body with its history mended; the same bytes when there is nothing to mend. Raises Fault(400)."""
    cleaners = {
        "chat": clean_chat,
        "messages": clean_messages,
        "count_tokens": clean_messages,
        "responses": clean_responses,
    }
    cleaner, field = cleaners.get(protocol), "input" if protocol == "responses" else "messages"
    top = tops.split(body)
    if cleaner is None or not tops.given(top, field):
        return body
    raw = top[field]
    cleaned = cleaner(raw)
    if cleaned is raw:
        return body
    top[field] = msgspec.Raw(cleaned)
    return b"".join(bytes(memoryview(piece)) for piece in tops.join(top))


def clean_chat(messages: Text, items: Items | None = None) -> Text:
    """Chat ``messages`` whose tool calls all have a JSON object as arguments, an id and a name."""
    return _clean(messages, read_chat(messages) if items is None else items, _unsound_calls, _chat_message)


def clean_messages(messages: Text, items: Items | None = None) -> Text:
    """Anthropic ``messages`` whose ``tool_use`` blocks all have an object as input."""
    return _clean(messages, read_messages(messages) if items is None else items, _unsound_uses, _anthropic_message)


def clean_responses(given: Text, items: Items | None = None) -> Text:
    """Responses ``input`` items whose function calls all have a JSON object as arguments."""
    return _clean(given, read_responses(given) if items is None else items, _unsound_call, _responses_item)


_calls = msgspec.json.Decoder(list[Call] | None)
_object = msgspec.json.Decoder(Object)


def _clean(raw: Text, items: Items | None, suspect: Suspect, cleaner: Cleaner) -> Text:
    suspects = None if items is None else [index for index, item in enumerate(items) if suspect(item)]
    if suspects == []:
        return raw
    changed = False
    try:
        parts = msgspec.json.decode(raw, type=list[msgspec.Raw])
        for index in range(len(parts)) if suspects is None else suspects:
            message = msgspec.json.decode(parts[index])
            if isinstance(message, dict) and cleaner(message):
                parts[index] = msgspec.Raw(msgspec.json.encode(message))
                changed = True
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # not ours to mend: the engine says what is wrong
        return raw
    return b"[" + b",".join(bytes(part) for part in parts) + b"]" if changed else raw


def _unsound_calls(message: Item | Turn) -> bool:
    """Whether the calls of a chat message need a closer look: only sound ones pass, and they are the rule."""
    calls = message.tool_calls
    if calls is None or calls is ABSENT:
        return False
    try:
        for call in (_calls.decode(calls) if isinstance(calls, msgspec.Raw) else calls) or ():
            _object.decode(call.function.arguments)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return True
    return False


def _unsound_uses(message: Item | Message) -> bool:
    """The same for a message of the Anthropic protocol."""
    content = message.content
    if not isinstance(content, msgspec.Raw):
        blocks = content if isinstance(content, list) else []
        return any(block.type == "tool_use" and block.input is None for block in blocks)
    view = bytes(content)
    return view[:1] == b"[" and (b"tool_use" in view or b"\\u00" in view)


def _unsound_call(item: Item | Input) -> bool:
    """The same for an input item of a response."""
    if not isinstance(item, Input):
        return bytes(item.type) == b'"function_call"' or b"\\" in bytes(item.type)
    if item.type != "function_call":
        return False
    try:
        _object.decode(item.arguments or "")
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return True
    return False


def _chat_message(message: dict[str, Any]) -> bool:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return False
    kept, changed = [], False
    for number, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            changed = True
            continue
        fixed = _arguments(function.get("arguments"))
        if fixed is not None:
            function["arguments"], changed = fixed, True
        if not isinstance(call.get("id"), str) or not call["id"]:
            call["id"], changed = f"call_replayed_{number}", True
        kept.append(call)
    if changed:
        message["tool_calls"] = kept
        if not kept:
            del message["tool_calls"]
            message["content"] = message.get("content") or ""
    return changed


def _anthropic_message(message: dict[str, Any]) -> bool:
    content, changed = message.get("content"), False
    for block in content if isinstance(content, list) else []:
        if isinstance(block, dict) and block.get("type") == "tool_use" and not isinstance(block.get("input"), dict):
            given = block.get("input")
            block["input"], changed = as_object(given) if isinstance(given, str) else {}, True
    return changed


def _responses_item(item: dict[str, Any]) -> bool:
    if item.get("type") != "function_call":
        return False
    fixed = _arguments(item.get("arguments"))
    if fixed is not None:
        item["arguments"] = fixed
    return fixed is not None


def _arguments(given: object) -> str | None:
    """The arguments as they must be, or None when they are so already."""
    if isinstance(given, dict):
        return msgspec.json.encode(given).decode()
    if not isinstance(given, str):
        return "{}"
    return None if isinstance(decode(given), dict) else msgspec.json.encode(as_object(given)).decode()
