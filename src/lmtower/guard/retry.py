"""The one constrained retry: the same conversation, with the answer forced into the tool's JSON Schema.

The edit keeps everything before the last message byte for byte, so that the engine's prefix cache still holds,
and asks for structured output instead of a tool call: engines constrain those reliably where their tool
parsers fail. When no single tool is known to be meant, the schema is a choice of ``{"name", "arguments"}`` pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from lmtower.guard.judge import Call
from lmtower.guard.repair import decode
from lmtower.guard.tools import JsonObject, Tool
from lmtower.wire import top as tops
from lmtower.wire.faults import Dialect
from lmtower.wire.top import Top

Edits = dict[str, bytes | None]
"""Top-level keys of a body -> new raw value; None removes the key."""


def retry_edits(dialect: Dialect, top: Top, tool: Tool | None, tools: Sequence[Tool]) -> Edits:
    """Edits of a body of this dialect (not streamed) that make the engine answer with arguments as its text."""
    schema = tool.schema if tool is not None else _choice(tools)
    name = _identifier(tool.name if tool is not None else "tool_call")
    hint = (
        f"Call the tool {tool.name!r} now: answer only with the JSON object of its arguments."
        if tool is not None
        else 'Call a tool now: answer only with a JSON object {"name": ..., "arguments": {...}}.'
    )
    common: Edits = {"tools": None, "tool_choice": None, "parallel_tool_calls": None, "stream": b"false", "n": None}
    form = {"type": "json_schema", "name": name, "strict": True, "schema": schema}
    if dialect == "anthropic":
        output = {"format": {"type": "json_schema", "schema": schema}}
        messages = with_hint(bytes(memoryview(top["messages"])), hint)
        return {**common, "messages": messages, "output_config": msgspec.json.encode(output)}
    if dialect == "responses":
        given = bytes(memoryview(top["input"]))
        items = given if given.lstrip()[:1] == b"[" else b'[{"role":"user","content":' + given + b"}]"
        # vLLM reads the first, llama.cpp the second
        text, shape = msgspec.json.encode({"format": form}), msgspec.json.encode(_response_format(form))
        return {**common, "input": with_hint(items, hint), "text": text, "response_format": shape}
    messages = with_hint(bytes(memoryview(top["messages"])), hint)
    return {
        **common,
        "messages": messages,
        "stream_options": None,
        "response_format": msgspec.json.encode(_response_format(form)),
    }


def _response_format(form: JsonObject) -> JsonObject:
    return {"type": "json_schema", "json_schema": {key: value for key, value in form.items() if key != "type"}}


def as_chat(top: Top) -> Top:
    """The texts of an Anthropic conversation as a chat: llama.cpp constrains no answer in Anthropic's form."""
    said = [{"role": "system", "content": _told(tops.value(top, "system"))}]
    for message in tops.value(top, "messages"):
        said.append({"role": message.get("role"), "content": _told(message.get("content"))})
    kept: Top = {name: top[name] for name in ("model", "max_tokens", "temperature") if name in top}
    return {**kept, "messages": tops.encoded([one for one in said if one["content"]])}


def _told(content: Any) -> str:
    """What blocks say, calls and their results included."""
    if isinstance(content, str):
        return content
    told: list[str] = []
    for block in content if isinstance(content, list) else []:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            told.append(str(block.get("text", "")))
        elif kind == "tool_use":
            told.append(f"{block.get('name')} {msgspec.json.encode(block.get('input')).decode()}")
        elif kind == "tool_result":
            told.append(_told(block.get("content")))
    return "\n\n".join(told)


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
            # the kind of the text part beside it: "text" in chat and messages, "input_text" in responses
            kind = "input_text" if any(_kind(part) == "input_text" for part in content) else "text"
            last["content"] = [*content, {"type": kind, "text": hint}]
        else:
            last["content"] = f"{content or ''}\n\n{hint}"
        raws[-1] = msgspec.Raw(msgspec.json.encode(last))
    else:
        raws.append(msgspec.Raw(msgspec.json.encode({"role": "user", "content": hint})))
    return b"[" + b",".join(bytes(raw) for raw in raws) + b"]"


def _kind(part: object) -> object:
    return part.get("type") if isinstance(part, dict) else None


def retried_call(content: str, tool: Tool | None, call_id: str) -> Call:
    """The call that the constrained answer stands for; judged again by the caller like any other."""
    if tool is not None:
        return Call(tool.name, content, call_id)
    value = decode(content)
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        return Call(value["name"], msgspec.json.encode(value.get("arguments", {})).decode(), call_id)
    return Call("", content, call_id)
