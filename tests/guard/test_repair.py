"""Repairs: what is certain is repaired, what is not is left to the model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmtower.guard.repair import as_object, repair
from lmtower.guard.tools import Tool, compile_tools

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "deep": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        "note": {"type": "string"},
        "where": {"$ref": "#/$defs/place"},
    },
    "$defs": {"place": {"type": "object", "properties": {"lat": {"type": "number"}}}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def tool(schema: dict[str, Any] | None = None) -> Tool:
    entry = {"type": "function", "function": {"name": "weather", "parameters": schema or SCHEMA}}
    found = compile_tools(json.dumps([entry]).encode()).find("weather")
    assert found is not None
    return found


PLAIN = {"city": "Oslo", "days": 3}
CERTAIN: list[tuple[str, dict[str, Any]]] = [
    ('{"city": "Oslo", "days": 3}', PLAIN),
    ('{"city": "Oslo", "days": 3', PLAIN),
    ('{"city": "Oslo", "days": 3}}', PLAIN),
    ('{"city": "Oslo", "days": 3,}', PLAIN),
    ("{'city': 'Oslo', 'days': 3}", PLAIN),
    ("{city: 'Oslo', days: 3}", PLAIN),
    ('"{\\"city\\": \\"Oslo\\", \\"days\\": 3}"', PLAIN),
    (json.dumps(json.dumps('{"city": "Oslo", "days": 3}')), PLAIN),
    ('{"city": "Oslo", "days": "3"}', PLAIN),
    ('{"city": "Oslo", "days": 3.0}', {"city": "Oslo", "days": 3.0}),
    ('{"city": 75, "days": 3}', {"city": "75", "days": 3}),
    ('{"city": "Oslo", "days": 3, "tags": "[\\"a\\", \\"b\\"]"}', PLAIN | {"tags": ["a", "b"]}),
    ('{"city": "Oslo", "days": 3, "deep": "true"}', PLAIN | {"deep": True}),
    ('{"city": "Oslo", "days": 3, "deep": "False"}', PLAIN | {"deep": False}),
    ('{"city": "Oslo", "days": 3, "note": null}', PLAIN),
    ('{"city": "Oslo", "days": 3, "where": "{\\"lat\\": \\"59.9\\"}"}', PLAIN | {"where": {"lat": 59.9}}),
    ('```json\n{"city": "Oslo", "days": 3}\n```', PLAIN),
    ('<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call>', PLAIN),
    ('{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\", \\"days\\": 3}"}', PLAIN),
    ('{"city": "Oslo", "days": 3}<|im_end|>', PLAIN),
    ('[{"city": "Oslo", "days": 3}]', PLAIN),
    ('{"city": "Oslo\nand north", "days": 3}', {"city": "Oslo\nand north", "days": 3}),
    ("{'city': 'Oslo', 'days': 3, 'deep': None}", PLAIN | {"deep": None}),
]
UNCERTAIN = [
    '"Paris"',
    "3",
    "null",
    "",
    "I would look at the weather in Oslo for 3 days",
    '{"city": "Oslo"}',
    '{"city": "Oslo", "days": "three"}',
    '{"city": "Oslo", "days": }',
    '{"days": 3, "city": ',
    '{"city": "Oslo", "days": 3, "unknown": 1}',
    '{"city": ["Oslo"], "days": 3}',
    '{"city": "Oslo", "days": true}',
]


@pytest.mark.parametrize(("text", "expected"), CERTAIN)
def test_certain_repair_gives_what_was_meant(text: str, expected: dict[str, Any]) -> None:
    """Truncated, double-encoded, stringified and marked-up arguments become valid ones."""
    assert expected == repair(text, tool())


@pytest.mark.parametrize("text", UNCERTAIN)
def test_uncertain_arguments_are_not_repaired(text: str) -> None:
    """Nothing is invented: a missing, wrong or strange value is left to a retry."""
    assert repair(text, tool()) is None


def test_answer_cut_by_max_tokens_is_repaired_only_when_nothing_can_be_missing() -> None:
    """A cut answer may lack optional properties or the end of a string; both would change what the tool does."""
    small = tool({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
    assert repair('{"city": "Oslo", "days": 3', tool(), cut=True) is None
    assert repair('{"city": "Osl', small, cut=True) is None
    assert repair('{"city": "Oslo"', small, cut=True) == {"city": "Oslo"}


def test_envelope_is_kept_when_the_tool_has_such_a_property() -> None:
    """A tool that takes ``arguments`` itself does not lose them."""
    schema = {"type": "object", "properties": {"arguments": {"type": "object"}}, "required": ["arguments"]}
    assert repair('{"arguments": {"a": 1}}', tool(schema)) == {"arguments": {"a": 1}}


def test_replayed_arguments_become_an_object_whatever_they_were() -> None:
    """History must only be readable: what can be read is kept, the rest is an empty object."""
    assert as_object('{"a": 1') == {"a": 1}
    assert as_object("no json") == {}
    assert as_object('"{\\"a\\": 1}"') == {"a": 1}
