"""The tools of one request: names, argument schemas and compiled validators, in any of the three dialects.

Agents send the same few dozen tools with every request, so what is compiled is kept, by the exact bytes of
the ``tools`` array, in a ``ToolCache`` that its owner bounds.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import jsonschema_rs
import msgspec

JsonObject = dict[str, Any]


class Tool(msgspec.Struct, frozen=True):
    """One function that the model may call. ``validator`` is None when the client's schema is itself broken."""

    name: str
    schema: JsonObject
    validator: jsonschema_rs.Validator | None

    def errors(self, arguments: object) -> list[jsonschema_rs.ValidationError]:
        """What the schema has against these arguments; empty when they are valid."""
        if self.validator is None or self.validator.is_valid(arguments):
            return []
        return list(self.validator.iter_errors(arguments))


class ToolSet(msgspec.Struct, frozen=True):
    """The callable tools of a request, by name, in the client's order."""

    tools: dict[str, Tool]

    def find(self, name: str) -> Tool | None:
        """The tool of that name; a wrong prefix (``functions.x``), case or space is forgiven when only one fits."""
        if name in self.tools:
            return self.tools[name]
        bare = _plain(name)
        close = [tool for known, tool in self.tools.items() if _plain(known) == bare]
        return close[0] if len(close) == 1 else None


def _plain(name: str) -> str:
    return name.strip().strip("\"'`").removeprefix("functions.").removeprefix("tool.").casefold()


def declared(entry: object) -> tuple[str, JsonObject] | None:
    """Name and argument schema of one entry: chat (nested), responses (flat) or messages (``input_schema``)."""
    if not isinstance(entry, dict):
        return None
    body = entry.get("function") if isinstance(entry.get("function"), dict) else entry
    if not isinstance(body, dict) or not isinstance(body.get("name"), str):
        return None
    schema = body.get("input_schema") if "input_schema" in body else body.get("parameters")
    # Server-side and freeform tools (web_search, custom) have a name but no JSON arguments to check.
    if schema is None and entry.get("type") not in ("function", None):
        return None
    return body["name"], schema if isinstance(schema, dict) else {"type": "object"}


def compile_tools(raw: bytes) -> ToolSet:
    """The callable tools of a raw ``tools`` array. Broken JSON is an empty set: the engine will say so."""
    try:
        entries = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ToolSet({})
    tools: dict[str, Tool] = {}
    for entry in _flatten(entries):
        found = declared(entry)
        if found is not None:
            tools[found[0]] = Tool(found[0], found[1], _validator(found[1]))
    return ToolSet(tools)


def _flatten(entries: object) -> list[object]:
    """Entries of the array, those inside Codex's ``namespace`` tools included."""
    found: list[object] = []
    for entry in entries if isinstance(entries, list) else []:
        found.append(entry)
        if isinstance(entry, dict) and entry.get("type") == "namespace":
            found.extend(_flatten(entry.get("tools")))
    return found


def _validator(schema: JsonObject) -> jsonschema_rs.Validator | None:
    try:
        # offline: a client's `$ref` to a URL must not make the gateway fetch it
        return jsonschema_rs.validator_for(schema, offline=True)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError):
        return None


class ToolCache:
    """Compiled tool sets by the bytes they came from; the least recently used one leaves first."""

    def __init__(self, most: int = 256) -> None:
        self._most = most
        self._sets: OrderedDict[bytes, ToolSet] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sets)

    def get(self, raw: bytes) -> ToolSet:
        key = hashlib.blake2b(raw, digest_size=16).digest()
        known = self._sets.get(key)
        if known is None:
            known = self._sets[key] = compile_tools(raw)
            if len(self._sets) > self._most:
                self._sets.popitem(last=False)
        else:
            self._sets.move_to_end(key)
        return known
