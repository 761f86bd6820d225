"""Prefix discipline: what keeps the start of a prompt the same from request to request.

A prefix cache only helps up to the first changed byte. Some clients send their tools in changing order, some put
lines at the top that differ each time; both can be put right without changing what the model is told.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import msgspec

from lmtower.personas.compile import CompiledPersona
from lmtower.personas.rules import Trace
from lmtower.wire import top as tops
from lmtower.wire.top import Top


def apply(protocol: str, top: Top, persona: CompiledPersona, trace: Trace | None) -> None:
    """The rules that come before a protocol's own. Completions, embeddings and rerank have nothing for them."""
    if protocol not in ("chat", "messages", "count_tokens", "responses"):
        return
    if persona.recipe.volatile:
        drop_volatile(top, protocol, persona.recipe.volatile, trace)
    if persona.canonical_tools:
        sort_tools(top, trace)
    if persona.tools == "strict" and persona.recipe.strict_tools == "strict":
        mark_strict(top, trace)


def mark_strict(top: Top, trace: Trace | None = None) -> None:
    """Each tool marked ``strict``, unless the client said otherwise: engines then constrain its arguments."""
    if not tops.given(top, "tools"):
        return
    entries: Any = tops.value(top, "tools")
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict):
            continue
        inner = entry.get("function")
        body: dict[str, Any] = inner if isinstance(inner, dict) else entry
        if "input_schema" in body or entry.get("type") == "function":
            body.setdefault("strict", True)
    top["tools"] = tops.encoded(entries)
    if trace is not None:
        trace.append(("tools", "each marked strict (tools: strict), as the model's recipe asks"))


def sort_tools(top: Top, trace: Trace | None = None) -> None:
    """Tools by name; every tool keeps its own bytes."""
    if not tops.given(top, "tools"):
        return
    raw = bytes(memoryview(top["tools"]))
    parts = [bytes(part) for part in msgspec.json.decode(raw, type=list[msgspec.Raw])] if raw[:1] == b"[" else []
    ordered = sorted(parts, key=_tool_name)
    if ordered != parts:
        top["tools"] = msgspec.Raw(b"[" + b",".join(ordered) + b"]")
        if trace is not None:
            trace.append(("tools", "sorted by name (canonical_tools)"))


def _tool_name(raw: bytes) -> str:
    entry: Any = msgspec.json.decode(raw)
    body = entry.get("function", entry) if isinstance(entry, dict) else {}
    return str(body.get("name", "")) if isinstance(body, dict) else ""


_SHORT = 8192
"""Below this many bytes a search through all messages is cheaper than finding the end of the first."""


@cache
def _pattern(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


def drop_volatile(top: Top, protocol: str, patterns: tuple[str, ...], trace: Trace | None = None) -> None:
    """Drop whole lines of the client's first system message (chat) or instructions (responses) that a recipe names.

    Messages of the Anthropic protocol have their own rule (``wire.messages``), because there it is a whole block.
    """
    if protocol == "responses":
        text = tops.value(top, "instructions")
        kept = _without(text, patterns) if isinstance(text, str) else text
        if kept is not text:
            top["instructions"] = tops.encoded(kept)
            _note(trace, "instructions")
        return
    found = top.get("messages") if protocol == "chat" else None
    if found is None:
        return
    short = len(found) < _SHORT
    if short and not _mentions(found, patterns):
        return
    head = bytes(memoryview(found)[:_SHORT])
    if head.find(b'"system"') < 0 and head.find(b'"developer"') < 0:
        return
    if not short and not _mentions(_first(memoryview(found)), patterns):
        return
    parts = msgspec.json.decode(found, type=list[msgspec.Raw])
    first: Any = msgspec.json.decode(parts[0])
    content = first.get("content") if isinstance(first, dict) else None
    kept = _without(content, patterns) if isinstance(content, str) else content
    if kept is not content:
        first["content"] = kept
        top["messages"] = tops.encoded([first, *parts[1:]])
        _note(trace, "messages")


def _without(text: str, patterns: tuple[str, ...]) -> str:
    pattern = _pattern(patterns)
    lines = text.split("\n")
    kept = [line for line in lines if not pattern.fullmatch(line)]
    return text if len(kept) == len(lines) else "\n".join(kept)


_NEXT = re.compile(rb'\}\s*,\s*\{\s*"\w')
"""Where another object follows: within a text its quote would be escaped."""


def _first(raw: memoryview) -> bytes:
    """All of the first message, if its content is a text, and perhaps more."""
    following = _NEXT.search(raw)
    return bytes(raw[: following.start()] if following else raw)


def _mentions(message: bytes | msgspec.Raw, patterns: tuple[str, ...]) -> bool:
    text = str(message, "latin-1")  # see ``items.is_plain``
    for literal in _literals(patterns):  # noqa: SIM110 - a generator costs more than the search
        if literal in text:
            return True
    return False


@cache
def _literals(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The plain letters that each pattern begins with: a cheap test before anything is decoded."""
    matches = [re.match(r"[A-Za-z0-9 _:\-]*", pattern) for pattern in patterns]
    return tuple(match[0] if match else "" for match in matches)


def _note(trace: Trace | None, field: str) -> None:
    if trace is not None:
        trace.append((field, "lines that change with every request are dropped, by the model's recipe"))
