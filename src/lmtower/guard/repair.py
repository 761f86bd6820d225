"""Repairs of tool-call arguments that can only be meant one way. Pure: text in, value out.

Theory of operation. A repair is *certain* when it neither invents nor loses anything that the model wrote:

1. markup that leaked out of the tool format (code fences, ``<tool_call>``, special tokens) is cut off;
2. JSON inside a JSON string is decoded again; a ``{"name": …, "arguments": {…}}`` envelope is opened;
3. broken JSON is mended by ``json_repair``, and what comes out must spell the same letters and digits in the
   same order as what went in. A mended value that was cut off by ``max_tokens`` must have every declared property;
4. a value of the wrong JSON type is turned into the type that the schema asks for, when the text of the value
   says just that (``"3"`` → 3, ``"true"`` → true, ``"[1, 2]"`` → [1, 2]); an optional null is dropped.

Everything else (a wrong enum member, a missing property, a bare scalar) is a question for the model, not for us.
"""

from __future__ import annotations

import re
from typing import Any

import jsonschema_rs
import msgspec

from lmtower.guard.tools import JsonObject, Tool

_FENCE = re.compile(r"^\s*```[a-zA-Z_]*\s*\n?(.*?)\n?\s*(?:```)?\s*$", re.DOTALL)
_MARKUP = re.compile(
    r"</?(?:tool_calls?|function_calls?|arguments|parameters|json)>|<\|[a-z_▁]{1,40}\|>|\[/?TOOL_CALLS\]|\[/?TOOL_REQUEST\]|</s>",
    re.IGNORECASE,
)
_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{4}|.)", re.DOTALL)
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_EMPTY = re.compile(r"(?<!\\)\"\"|''")
_MISSING = object()


def decode(text: str) -> object:
    """The JSON value of the text, or ``_MISSING`` (never equal to anything) when it is not JSON."""
    try:
        return msgspec.json.decode(text.encode("utf-8", "surrogatepass"))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _MISSING


def repair(text: str, tool: Tool, *, cut: bool = False) -> JsonObject | None:
    """Valid arguments that the text can only have meant, or None. ``cut``: the answer ended at ``max_tokens``."""
    for value in _readings(text, tool, cut=cut):
        fitted = _fit(value, tool)
        if fitted is not None:
            return fitted
    return None


def as_object(text: str) -> JsonObject:
    """The JSON object that a replayed call most likely meant; ``{}`` when nothing of it can be read."""
    for value in _readings(text, None, cut=False):
        if isinstance(value, dict):
            return value
    return {}


def _readings(text: str, tool: Tool | None, *, cut: bool) -> list[object]:
    """Values that the text may stand for, the most literal first."""
    bare = strip_markup(text)
    if not bare:
        return [{}]
    found: list[object] = []
    value = decode(bare)
    if value is _MISSING:
        value = _mend(bare, tool, cut=cut)
    for _ in range(3):  # double encoding, seen up to three deep
        if value is _MISSING:
            break
        found.append(value)
        inner = _opened(value, tool)
        if inner is not _MISSING:
            found.append(inner)
            value = inner
        if not isinstance(value, str):
            break
        nested = strip_markup(value)
        value = decode(nested)
        if value is _MISSING and nested.startswith(("{", "[")):
            value = _mend(nested, tool, cut=cut)
    return found


def strip_markup(text: str) -> str:
    """The text without the markup that models leak around a call."""
    bare = text.strip().lstrip("\ufeff")
    if decode(bare) is not _MISSING:
        return bare
    if fence := _FENCE.match(bare):
        bare = fence[1].strip()
    start, end = bare.find("{"), bare.rfind("}")
    head, tail = bare[: max(start, 0)], bare[end + 1 :] if end > start else ""
    if start > 0 and _MARKUP.search(head):
        bare = bare[start:]
    if tail and _MARKUP.search(tail):
        bare = bare[: bare.rfind("}") + 1]
    return _MARKUP.sub("", bare).strip() if not bare.startswith(("{", "[", '"')) else bare


def _opened(value: object, tool: Tool | None) -> object:
    """What is inside a ``{"name": …, "arguments": …}`` envelope, or a list of one object."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        return value[0]
    if not isinstance(value, dict):
        return _MISSING
    declared = tool.schema.get("properties", {}) if tool else {}
    for key in ("arguments", "parameters", "input"):
        if key in value and key not in declared and set(value) <= {"name", "type", "id", key}:
            return value[key]
    return _MISSING


def _mend(text: str, tool: Tool | None, *, cut: bool) -> object:
    from json_repair import repair_json  # few starts ever need it

    try:
        value = repair_json(text, return_objects=True, skip_json_loads=True)
        spelled = msgspec.json.encode(value).decode()
    except (RecursionError, UnicodeEncodeError):  # nested beyond reason; half a surrogate pair
        return _MISSING
    if not isinstance(value, dict | list) or not value or _letters(text) != _letters(spelled):
        return _MISSING
    # json_repair puts "" where a value is missing; that is an invention
    if len(_EMPTY.findall(text)) < _count_empty(value):
        return _MISSING
    if cut and tool is not None and (_ends_in_string(text) or not _complete(value, tool)):
        return _MISSING
    return value


def _letters(text: str) -> str:
    """ASCII letters and digits of the text without escapes; Python's literals spelled as JSON's."""
    kept = "".join(char for char in _ESCAPE.sub("", text) if char.isascii() and char.isalnum())
    return kept.casefold().replace("none", "null")


def _count_empty(value: object) -> int:
    if isinstance(value, dict):
        return sum((key == "") + _count_empty(inner) for key, inner in value.items())
    if isinstance(value, list):
        return sum(_count_empty(inner) for inner in value)
    return int(value == "")


def _ends_in_string(text: str) -> bool:
    return _ESCAPE.sub("", text).count('"') % 2 == 1


def _complete(value: object, tool: Tool) -> bool:
    return isinstance(value, dict) and set(tool.schema.get("properties", {})) <= set(value)


def _fit(value: object, tool: Tool) -> JsonObject | None:
    """The value with wrong JSON types put right, when it then satisfies the schema."""
    for _ in range(4):  # a corrected container may uncover errors inside it
        if isinstance(value, dict) and not (errors := tool.errors(value)):
            return value
        if not isinstance(value, dict):
            return None
        changes = [change for error in errors if (change := _change(value, error, tool)) is not None]
        if not changes:
            return None
        value = msgspec.json.decode(msgspec.json.encode(value))
        for path, replacement in changes:
            _put(value, path, replacement)
    return None


def _change(
    root: JsonObject, error: jsonschema_rs.ValidationError, tool: Tool
) -> tuple[list[str | int], object] | None:
    path, found = list(error.instance_path), error.instance
    if not path:
        return None
    wanted = _wanted(error)
    for kind in wanted:
        coerced = _coerce(found, kind)
        if coerced is not _MISSING:
            return path, coerced
    if found is None and wanted and len(path) == 1 and path[0] not in tool.schema.get("required", []):
        return path, _MISSING
    return None


def _wanted(error: jsonschema_rs.ValidationError) -> list[str]:
    """JSON types that would satisfy the schema at this place; integer before number, string last."""
    kind = error.kind
    types: set[str] = set()
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.Type):
        types.update(kind.types)
    elif isinstance(kind, jsonschema_rs.ValidationErrorKind.AnyOf | jsonschema_rs.ValidationErrorKind.OneOfNotValid):
        for branch in kind.context:
            for inner in branch:
                if list(inner.instance_path) == list(error.instance_path):
                    types.update(_wanted(inner))
    order = ("integer", "number", "boolean", "array", "object", "null", "string")
    return [name for name in order if name in types]


def _coerce(value: object, kind: str) -> object:
    if kind == "string":
        return _spelled(value)
    if not isinstance(value, str):
        return _MISSING
    text = value.strip()
    if kind in ("integer", "number"):
        number = decode(text) if _NUMBER.fullmatch(text) else _MISSING
        whole = isinstance(number, int) or (isinstance(number, float) and number.is_integer())
        return number if kind == "number" or whole else _MISSING
    if kind == "boolean":
        return {"true": True, "false": False}.get(text.lower(), _MISSING)
    if kind == "null":
        return None if text.lower() in ("null", "none") else _MISSING
    inner = decode(text)
    if inner is _MISSING and text.startswith(("{", "[")):
        inner = _mend(text, None, cut=False)
    return inner if isinstance(inner, list if kind == "array" else dict) else _MISSING


def _spelled(value: object) -> object:
    """A number or boolean as the string that the model left the quotes off."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return msgspec.json.encode(value).decode() if isinstance(value, int | float) else _MISSING


def _put(root: Any, path: list[str | int], value: object) -> None:
    for step in path[:-1]:
        root = root[step]
    if value is _MISSING:
        del root[path[-1]]
    else:
        root[path[-1]] = value
