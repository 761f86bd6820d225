"""Verdicts, tool sets, history and leaks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmtower.guard import Call, Rules, ToolCache, Verdict, clean_chat, clean_messages, clean_responses, judge, rules_of
from lmtower.guard.assemble import Assembler, deltas
from lmtower.guard.leaks import parse
from lmtower.guard.retry import retry_edits, with_hint
from lmtower.guard.tools import compile_tools
from lmtower.wire import top as tops

PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
}
TOOLS = json.dumps(
    [
        {"type": "function", "function": {"name": "add", "parameters": PARAMETERS}},
        {"type": "function", "function": {"name": "now"}},
    ]
).encode()


def rules(**fields: Any) -> Rules:
    return Rules(compile_tools(TOOLS), **fields)


@pytest.mark.parametrize(
    ("calls", "fields", "verdict"),
    [
        ([], {}, "valid"),
        ([], {"required": True}, "retry"),
        ([], {"forced": "add"}, "retry"),
        ([Call("add", '{"a": 1, "b": 2}')], {}, "valid"),
        ([Call("functions.Add ", '{"a": 1, "b": 2}')], {}, "repaired"),
        ([Call("now", "{}")], {}, "valid"),
        ([Call("now", "")], {}, "repaired"),
        ([Call("add", '{"a": "1", "b": 2}')], {}, "repaired"),
        ([Call("add", '"Paris"')], {}, "retry"),
        ([Call("add", '{"a": 1}')], {}, "retry"),
        ([Call("nope", "{}")], {}, "retry"),
        ([Call("now", "{}")], {"forced": "add"}, "retry"),
        ([Call("add", '{"a": 1, "b": 2}'), Call("add", "broken")], {"parallel": False}, "valid"),
        ([Call("add", '{"a": 1, "b": 2}'), Call("add", "broken")], {}, "retry"),
    ],
)
def test_verdict_follows_the_rules(calls: list[Call], fields: dict[str, Any], verdict: str) -> None:
    """Valid, repaired or retry, by schema, tool choice and parallel_tool_calls."""
    assert judge(calls, rules(**fields)).verdict == verdict


def test_second_failure_is_rejected() -> None:
    """There is one retry."""
    assert judge([Call("add", "x")], rules(), retried=True).verdict is Verdict.REJECT


def test_single_call_is_kept_when_parallel_calls_are_off() -> None:
    """``parallel_tool_calls: false`` keeps the first call and counts the others as dropped."""
    found = judge([Call("now", "{}"), Call("now", "{}")], rules(parallel=False))
    assert (len(found.calls), found.dropped) == (1, 1)


def test_complaint_never_quotes_the_arguments() -> None:
    """Arguments may hold secrets of the user: an error names the place, not the value."""
    found = judge([Call("add", '{"a": "hunter2", "b": 1}')], rules())
    assert "hunter2" not in found.reason
    assert "a" in found.reason


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, None),
        ({"tools": TOOLS, "tool_choice": b'"none"'}, None),
        ({"tools": TOOLS, "tool_choice": b'{"type":"none"}'}, None),
        ({"tools": TOOLS}, (None, False, True)),
        ({"tools": TOOLS, "tool_choice": b"null"}, (None, False, True)),
        ({"tools": TOOLS, "tool_choice": b'"required"'}, (None, True, True)),
        ({"tools": TOOLS, "tool_choice": b'{"type":"any","disable_parallel_tool_use":true}'}, (None, True, False)),
        ({"tools": TOOLS, "tool_choice": b'{"type":"function","function":{"name":"add"}}'}, ("add", False, True)),
        ({"tools": TOOLS, "tool_choice": b'{"type":"tool","name":"add"}'}, ("add", False, True)),
        ({"tools": TOOLS, "parallel_tool_calls": b"false"}, (None, False, False)),
    ],
)
def test_rules_are_read_from_every_dialect(body: dict[str, Any], expected: tuple[Any, ...] | None) -> None:
    """tool_choice and parallel_tool_calls mean the same in chat, messages and responses."""
    found = rules_of(body, ToolCache())
    assert (found and (found.forced, found.required, found.parallel)) == expected


def test_tool_schemas_of_all_dialects_compile_and_broken_ones_accept_any_object() -> None:
    """Chat nests, responses are flat, Anthropic says input_schema; a broken schema is the client's business."""
    entries = [
        {"name": "m", "input_schema": PARAMETERS},
        {"type": "function", "name": "r", "parameters": PARAMETERS},
        {"type": "web_search"},
        {"type": "custom", "name": "freeform"},
        {"type": "namespace", "name": "ns", "tools": [{"type": "function", "name": "inner", "parameters": PARAMETERS}]},
        {"type": "function", "function": {"name": "broken", "parameters": {"type": "objekt"}}},
        {"type": "function", "function": {"name": "far", "parameters": {"$ref": "http://169.254.169.254/x"}}},
    ]
    found = compile_tools(json.dumps(entries).encode()).tools
    assert set(found) == {"m", "r", "inner", "broken", "far", "ns"} - {"ns"}
    assert found["broken"].errors({"anything": 1}) == []
    assert found["m"].errors({"a": 1}) != []


def test_tool_cache_is_bounded_and_hits_on_the_same_bytes() -> None:
    """Agents send the same tools every time; a thousand different ones must not fill memory."""
    cache = ToolCache(most=2)
    first = cache.get(TOOLS)
    assert cache.get(TOOLS) is first
    for number in range(5):
        cache.get(json.dumps([{"type": "function", "function": {"name": f"t{number}"}}]).encode())
    assert len(cache) == 2


def test_healthy_history_keeps_its_very_bytes() -> None:
    """The prefix cache depends on it."""
    raw = (
        b'[ {"role":"user","content":"x"},\n {"role":"assistant","content":null,"tool_calls":'
        b'[{"id":"c1","type":"function","function":{"name":"add","arguments":"{\\"a\\": 1}"}}]} ]'
    )
    assert clean_chat(raw) is raw


def test_broken_call_in_history_is_mended_and_nothing_else_is_touched() -> None:
    """One bad turn cannot poison the conversation."""
    good = b'{"role":"user","content":"caf\\u00e9  "}'
    bad = json.dumps(
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": '}},
                {"id": "c2", "type": "function", "function": {"name": "add", "arguments": '{"a": 1'}},
                {"id": "c3", "type": "function", "function": {"name": None, "arguments": "{}"}},
            ],
        }
    ).encode()
    cleaned = clean_chat(b"[" + good + b"," + bad + b"]")
    assert cleaned.startswith(b"[" + good + b",")
    calls = json.loads(cleaned)[1]["tool_calls"]
    assert [(call["id"], json.loads(call["function"]["arguments"])) for call in calls] == [
        ("call_replayed_0", {}),
        ("c2", {"a": 1}),
    ]


def test_history_of_messages_and_responses_is_mended_too() -> None:
    """Anthropic inputs must be objects, responses arguments JSON objects."""
    messages = b'[{"role":"assistant","content":[{"type":"tool_use","id":"t","name":"add","input":"{\\"a\\": 1"}]}]'
    assert json.loads(clean_messages(messages))[0]["content"][0]["input"] == {"a": 1}
    items = b'[{"type":"function_call","call_id":"c","name":"add","arguments":"oops"},{"role":"user","content":"x"}]'
    assert json.loads(clean_responses(items))[0]["arguments"] == "{}"
    assert clean_responses(b'"just text function_call"') == b'"just text function_call"'


def test_assembler_understands_missing_indexes_and_repeated_ids() -> None:
    """Engines leave the index off or give two calls one id; clients get neither."""
    assembler = Assembler()
    assembler.add([{"id": "x", "function": {"name": "add", "arguments": '{"a"'}}])
    assembler.add([{"function": {"arguments": ": 1}"}}])
    assembler.add([{"id": "y", "function": {"name": "now", "arguments": ""}}])
    assembler.add([{"index": 2, "id": "x", "function": {"name": "now", "arguments": "{}"}}])
    calls = assembler.calls(lambda: "fresh")
    assert calls == [Call("add", '{"a": 1}', "x"), Call("now", "", "y"), Call("now", "{}", "fresh")]


def test_deltas_name_the_call_first_and_always_carry_an_index() -> None:
    """Index, id, type and name come before the arguments."""
    head, arguments = deltas([Call("add", '{"a": 1}', "c1")])
    assert head["tool_calls"][0] == {
        "index": 0,
        "id": "c1",
        "type": "function",
        "function": {"name": "add", "arguments": ""},
    }
    assert arguments == {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": 1}'}}]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>', [Call("add", '{"a":1}')]),
        ('<tool_call>{"name": "add", "arguments": {"a": 1}}', [Call("add", '{"a":1}')]),
        ('[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]', [Call("add", '{"a":1}')]),
        ("<function=add>\n<parameter=a>\n1\n</parameter>\n</function>", [Call("add", '{"a":"1"}')]),
        ("<tool_call> is an XML tag", []),
    ],
)
def test_leaked_calls_are_read_from_text(text: str, expected: list[Call]) -> None:
    """Every family's markup; a text that only mentions it stays a text."""
    assert parse(text) == expected


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "responses"])
def test_retry_forces_the_schema_and_keeps_the_earlier_messages(dialect: Any) -> None:
    """The second request asks for structured output, without tools, not streamed."""
    tool = compile_tools(TOOLS).find("add")
    field = "input" if dialect == "responses" else "messages"
    top: tops.Top = {field: b'[{"role":"system","content":"s  "},{"role":"user","content":"hi"}]', "tools": TOOLS}
    edits = retry_edits(dialect, top, tool, [])
    assert edits["tools"] is None
    assert edits["stream"] == b"false"
    assert (edits[field] or b"").startswith(b'[{"role":"system","content":"s  "},')
    shape = json.loads(
        edits[{"openai": "response_format", "anthropic": "output_config", "responses": "text"}[dialect]] or b""
    )
    assert PARAMETERS in (
        shape.get("json_schema", {}).get("schema"),
        shape.get("format", {}).get("schema"),
    )


def test_hint_joins_the_last_user_message_or_becomes_one() -> None:
    """Templates refuse two user messages in a row."""
    parts = b'[{"role":"user","content":[{"type":"input_text","text":"a"}]}]'
    assert json.loads(with_hint(parts, "go"))[0]["content"][1] == {"type": "input_text", "text": "go"}
    assert json.loads(with_hint(b'[{"role":"assistant","content":"a"}]', "go"))[1] == {"role": "user", "content": "go"}
