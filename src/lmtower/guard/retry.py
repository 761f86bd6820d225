"""The one constrained retry: the same conversation, with the answer forced into the tool's JSON Schema.

The edit keeps everything before the last message byte for byte, so that the engine's prefix cache still holds,
and asks for structured output instead of a tool call: engines constrain those reliably where their tool
parsers fail. When no single tool is known to be meant, the schema is a choice of ``{"name", "arguments"}`` pairs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from lmtower.guard.judge import Call
from lmtower.guard.repair import decode
from lmtower.guard.tools import JsonObject, Tool

Edits = dict[str, bytes | None]
"""Top-level keys of a chat body -> new raw value; None removes the key."""


def retry_edits(messages: bytes, tool: Tool | None, tools: Iterable[Tool]) -> Edits:
    """Edits of a chat body (not streamed) that make the engine answer with arguments as its content."""
    schema = tool.schema if tool is not None else _choice(tools)
    name = tool.name if tool is not None else "tool_call"
    form = {"type": "json_schema", "json_schema": {"name": _identifier(name), "strict": True, "schema": schema}}
    hint = (
        f"Call the tool {tool.name!r} now: answer only with the JSON object of its arguments."
        if tool is not None
        else 'Call a tool now: answer only with a JSON object {"name": ..., "arguments": {...}}.'
    )
    return {
        "messages": with_hint(messages, hint),
        "response_format": msgspec.json.encode(form),
        "tools": None,
        "tool_choice": None,
        "parallel_tool_calls": None,
        "stream": b"false",
        "stream_options": None,
        "n": None,
    }


def _choice(tools: Iterable[Tool]) -> JsonObject:
    branches: list[JsonObject] = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": tool.schema},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return branches[0] if len(branches) == 1 else {"anyOf": branches}


def _identifier(name: str) -> str:
    return "".join(char if char.isascii() and (char.isalnum() or char in "_-") else "_" for char in name)[:64]


def with_hint(messages: bytes, hint: str) -> bytes:
    """The messages with one more sentence at their end; templates refuse two user messages in a row."""
    raws = msgspec.json.decode(messages, type=list[msgspec.Raw])
    last: Any = msgspec.json.decode(raws[-1]) if raws else None
    if isinstance(last, dict) and last.get("role") == "user":
        content = last.get("content")
        if isinstance(content, list):
            last["content"] = [*content, {"type": "text", "text": hint}]
        else:
            last["content"] = f"{content or ''}\n\n{hint}"
        raws[-1] = msgspec.Raw(msgspec.json.encode(last))
    else:
        raws.append(msgspec.Raw(msgspec.json.encode({"role": "user", "content": hint})))
    return b"[" + b",".join(bytes(raw) for raw in raws) + b"]"


def retried_call(content: str, tool: Tool | None, call_id: str) -> Call:
    """The call that the constrained answer stands for; judged again by the caller like any other."""
    if tool is not None:
        return Call(tool.name, content, call_id)
    value = decode(content)
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        return Call(value["name"], msgspec.json.encode(value.get("arguments", {})).decode(), call_id)
    return Call("", content, call_id)
