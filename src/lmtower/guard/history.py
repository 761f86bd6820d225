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

Cleaner = Callable[[dict[str, Any]], bool]
"""Changes one message in place; True when it did."""


def clean_chat(messages: bytes) -> bytes:
    """Chat ``messages`` whose tool calls all have a JSON object as arguments, an id and a name."""
    return _clean(messages, (b"tool_calls", b"function_call"), _chat_message)


def clean_messages(messages: bytes) -> bytes:
    """Anthropic ``messages`` whose ``tool_use`` blocks all have an object as input."""
    return _clean(messages, (b"tool_use",), _anthropic_message)


def clean_responses(items: bytes) -> bytes:
    """Responses ``input`` items whose function calls all have a JSON object as arguments."""
    return _clean(items, (b"function_call",), _responses_item) if items.lstrip()[:1] == b"[" else items


def _clean(raw: bytes, marks: tuple[bytes, ...], cleaner: Cleaner) -> bytes:
    # an escaped key (backslash u) is legal JSON, though no client writes one: then look properly
    if not any(mark in raw for mark in marks) and b"\\u00" not in raw:
        return raw
    try:
        parts = msgspec.json.decode(raw, type=list[msgspec.Raw])
    except msgspec.DecodeError:
        return raw
    changed = False
    for index, part in enumerate(parts):
        view = memoryview(part).tobytes()
        if not any(mark in view for mark in marks):
            continue
        message = msgspec.json.decode(view)
        if isinstance(message, dict) and cleaner(message):
            parts[index] = msgspec.Raw(msgspec.json.encode(message))
            changed = True
    return b"[" + b",".join(bytes(part) for part in parts) + b"]" if changed else raw


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
