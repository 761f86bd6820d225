"""Tools that run at OpenAI or Anthropic: no engine has them, and engines refuse a request that names one."""

from __future__ import annotations

from typing import Any

import msgspec

OPENAI = ("web_search", "image_generation", "code_interpreter", "computer", "local_shell", "tool_search")
"""What the types of such tools begin with in ``/v1/responses``."""


def without(tools: bytes, choice: Any, *, anthropic: bool = False) -> tuple[bytes, list[str], bool]:
    """(the tools that an engine can be told of, names and types of the others, whether the choice still holds).

    Anthropic's own tools (``web_search_20250305``, ``bash_20250124``) have a type and no ``input_schema``.
    """
    kept: list[bytes] = []
    dropped: list[str] = []
    gone: set[object] = set()
    for raw in msgspec.json.decode(tools, type=list[msgspec.Raw]):
        tool = msgspec.json.decode(raw)
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(kind, str) and _is_foreign(tool, kind, anthropic):
            dropped.append(kind)
            gone |= {kind, tool["name"]} if isinstance(tool.get("name"), str) else {kind}
        else:
            kept.append(bytes(raw))
    if not dropped:
        return tools, [], True
    wanted = {str(choice.get("type")), str(choice.get("name"))} if isinstance(choice, dict) else set()
    return b"[" + b",".join(kept) + b"]", dropped, bool(kept) and not wanted & gone


def _is_foreign(tool: dict[str, Any], kind: str, anthropic: bool) -> bool:
    if anthropic:
        return kind != "custom" and "input_schema" not in tool
    return kind.startswith(OPENAI)
