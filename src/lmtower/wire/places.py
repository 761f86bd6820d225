"""Where the events of a responses stream belong: SDKs put answers together by index, and llama.cpp leaves them out."""

from __future__ import annotations

from typing import Any

_IN_CONTENT = (
    "response.content_part.",
    "response.output_text.",
    "response.refusal.",
    "response.reasoning_text.",
)
"""Events about one part of an item's content."""


class Places:
    """Counts items and their parts as they are announced. What an engine says itself is kept."""

    __slots__ = ("_items", "_parts")

    def __init__(self) -> None:
        self._items: dict[str, int] = {}
        self._parts: dict[str, int] = {}

    def put(self, kind: str, event: dict[str, Any]) -> None:
        """Add ``output_index`` and ``content_index`` to an event of this kind where they are missing."""
        item = event.get("item")
        name = item.get("id") if isinstance(item, dict) else event.get("item_id")
        if not isinstance(name, str):
            return
        given = event.get("output_index")
        if isinstance(given, int):
            self._items[name] = given
        else:
            event["output_index"] = self._items.setdefault(name, len(self._items))
        if not kind.startswith(_IN_CONTENT) or isinstance(event.get("content_index"), int):
            return
        if kind == "response.content_part.added":
            self._parts[name] = self._parts.get(name, -1) + 1
        event["content_index"] = max(self._parts.get(name, 0), 0)
