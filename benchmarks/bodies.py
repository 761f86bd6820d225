"""The request bodies of the workloads: the same bytes every time."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

from benchmarks.place import WORK

SYSTEM_MARK = "bench-system-prompt-of-the-persona"
PARAMETER_MARK = '"top_k":17'
END_MARK = "the-last-words-of-the-body"
SYSTEM = (
    f"You are the {SYSTEM_MARK}. " + "Answer briefly, in the language of the question, and name your sources. " * 12
)

Body = dict[str, Any]


def small_chat() -> Body:
    return {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": f"What is the capital of France? {END_MARK}"},
        ],
        "max_tokens": 64,
        "temperature": 0.7,
    }


def stream_chat() -> Body:
    return small_chat() | {"stream": True, "stream_options": {"include_usage": True}}


def _code(random_: random.Random, length: int) -> str:
    """Text that is escaped as often as real code is: a line break every few words, some quotes and Unicode."""
    words = [
        "def",
        "return",
        "config",
        "self._value",
        "number",
        "the",
        "request",
        "für",
        "(name)",
        "0x1f",
        "async",
        "=",
    ]
    text = ""
    while len(text) < length:
        line = " ".join(random_.choice(words) for _ in range(random_.randrange(2, 12)))
        text += " " * (4 * random_.randrange(4)) + line + random_.choice(["\n", "\n", ' "quoted"\n', " \\d+\n", "\n\t"])
    return text[:length]


def agent_chat(size: int = 900_000) -> Body:
    """A coding agent late in its session: a system prompt, 24 tools, 200 messages with tool calls and results."""
    random_ = random.Random(7)
    tools = []
    for number in range(24):
        properties = {f"field_{i}": {"type": "string", "description": _code(random_, 120)} for i in range(6)}
        schema = {"type": "object", "properties": properties, "required": ["field_0"], "additionalProperties": False}
        function = {"name": f"tool_{number}", "description": _code(random_, 400), "parameters": schema}
        tools.append({"type": "function", "function": function})
    messages: list[Body] = [{"role": "system", "content": _code(random_, 20_000)}]
    room = (size - 60_000) // 100
    for number in range(100):
        arguments = json.dumps({"field_0": _code(random_, room // 10)})
        call = {"id": f"call_{number}", "type": "function", "function": {"name": "tool_3", "arguments": arguments}}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": f"call_{number}", "content": _code(random_, room * 3 // 4)})
    messages.append({"role": "user", "content": f"Go on. {END_MARK}"})
    return {"messages": messages, "tools": tools, "tool_choice": "auto", "max_tokens": 4096}


def new_agent_chat() -> Body:
    """The same, but each request is the first of its conversation: the load generator counts the zeros up."""
    body = agent_chat()
    body["messages"][0]["content"] = "session-0000000000\n" + body["messages"][0]["content"]
    return body


def image_chat(size: int = 4_000_000) -> Body:
    """A camera's picture: base64 in a data URL."""
    data = base64.b64encode(random.Random(9).randbytes(size * 3 // 4)).decode()
    parts = [
        {"type": "text", "text": "What is on this picture?"},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}", "detail": "low"}},
        {"type": "text", "text": END_MARK},
    ]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 256}


def text_chat(size: int) -> Body:
    """One message of ``size`` bytes, for the cost curve."""
    return {"messages": [{"role": "user", "content": "a b c d " * (size // 8) + END_MARK}], "max_tokens": 64}


def write_request(name: str, body: Body, *, model: str, key: str) -> Path:
    """The whole HTTP request, as the load generator sends it."""
    data = json.dumps({"model": model} | body, separators=(",", ":"), ensure_ascii=False).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nuser-agent: lmtower-bench\r\n"
        f"authorization: Bearer {key}\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    path = WORK / "requests" / f"{name}.http"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head.encode() + data)
    return path
