"""Tool calls that leaked into the text, because the engine's parser did not recognise them.

Seen with every family: ``<tool_call>{"name": …, "arguments": …}</tool_call>`` (Hermes, Qwen), ``[TOOL_CALLS][…]``
(Mistral), ``<function=name><parameter=key>value</parameter></function>`` (Qwen3-Coder, Nemotron 3).
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from lmtower.guard.judge import Call
from lmtower.guard.repair import decode, strip_markup

MARKERS = ("<tool_call>", "[TOOL_CALLS]", "<|tool_call|>", "<function=")
_BLOCK = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


def parse(text: str) -> list[Call]:
    """The calls in a text that begins with a marker; empty when nothing in it can be read as one."""
    functions = _FUNCTION.findall(text)
    if functions:
        return [Call(name, _parameters(body)) for name, body in functions]
    blocks = _BLOCK.findall(text) or [re.sub(r"^(?:\[TOOL_CALLS\]|<\|tool_call\|>)", "", text.strip())]
    found: list[Call] = []
    for block in blocks:
        value = decode(strip_markup(block))
        for entry in value if isinstance(value, list) else [value]:
            call = _call(entry)
            if call is None:
                return []
            found.append(call)
    return found


def _call(entry: object) -> Call | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    given: Any = entry.get("arguments", entry.get("parameters", {}))
    return Call(entry["name"], given if isinstance(given, str) else msgspec.json.encode(given).decode())


def _parameters(body: str) -> str:
    """Parameters are written without types; the repair turns them into what the schema asks for."""
    return msgspec.json.encode(dict(_PARAMETER.findall(body))).decode()
