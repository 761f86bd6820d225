"""Persona + body -> upstream body: precedence of every rule, and that explain prints what is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtower import recipes
from lmtower.config.types import Persona
from lmtower.personas import CompiledPersona, compile_persona, explain, prepare
from lmtower.wire import top
from lmtower.wire.faults import Fault

MESSAGES = [{"role": "user", "content": "hi"}]


def persona(recipe: str = "generic", **fields: Any) -> CompiledPersona:
    value = Persona.model_validate({"engine": "big", **fields})
    return compile_persona("plan", value, served="served", recipe=recipes.get(recipe), max_model_len=4096)


def sent(body: dict[str, Any], compiled: CompiledPersona, protocol: str = "chat") -> dict[str, Any]:
    raw = json.dumps({"model": "plan", **body}).encode()
    prepared = prepare(protocol, top.split(raw), compiled, "plan", "req_1")
    found: dict[str, Any] = json.loads(b"".join(bytes(memoryview(piece)) for piece in prepared.pieces))
    return found


@pytest.mark.parametrize(
    ("fields", "body", "expected"),
    [
        ({"temperature": 0.6}, {}, {"temperature": 0.6}),
        ({"temperature": 0.6}, {"temperature": 1}, {"temperature": 1}),
        ({"temperature": 0.6}, {"temperature": None}, {"temperature": 0.6}),
        ({"enforce": {"temperature": 0}}, {"temperature": 1}, {"temperature": 0}),
        ({"max_tokens": 100}, {"max_completion_tokens": 7}, {"max_tokens": None, "max_completion_tokens": 7}),
        (
            {"enforce": {"max_tokens": 100}},
            {"max_completion_tokens": 7},
            {"max_tokens": 100, "max_completion_tokens": None},
        ),
        ({"extra": {"chat_template_kwargs": {"a": 1}}}, {}, {"chat_template_kwargs": {"a": 1}}),
        (
            {"thinking": "off"},
            {"chat_template_kwargs": {"a": 1, "enable_thinking": True}},
            {"chat_template_kwargs": {"a": 1, "enable_thinking": False}},
        ),
        (
            {"thinking": "auto"},
            {"chat_template_kwargs": {"enable_thinking": True}},
            {"chat_template_kwargs": {"enable_thinking": True}},
        ),
        (
            {},
            {"reasoning_effort": "low", "future_field": {"x": [1]}},
            {"reasoning_effort": "low", "future_field": {"x": [1]}},
        ),
        (
            {},
            {"chat_template": "evil", "cache_salt": "x", "priority": -5, "kv_transfer_params": {}},
            {"chat_template": None, "cache_salt": None, "priority": None, "kv_transfer_params": None},
        ),
        ({}, {"stream": True}, {"stream_options": {"include_usage": True}}),
        (
            {},
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            {"stream_options": {"continuous_usage_stats": True, "include_usage": True}},
        ),
    ],
)
def test_each_rule(fields: dict[str, Any], body: dict[str, Any], expected: dict[str, Any]) -> None:
    """Defaults yield, enforced values win, thinking follows the recipe, engine extras are dropped, the rest passes."""
    found = sent({"messages": MESSAGES, **body}, persona(**fields))
    assert {key: found.get(key) for key in expected} == expected
    assert found["model"] == "served"


@pytest.mark.parametrize("thinking", ["on", "off", "low"])
@pytest.mark.parametrize("name", [recipe.name for recipe in recipes.all_recipes()])
def test_every_recipe_gives_a_body_for_every_thinking_mode(name: str, thinking: str) -> None:
    """Whatever the family, the switch is a body that can be sent, and the same one every time."""
    compiled = persona(name, thinking=thinking, system="Be kind.")
    first = sent({"messages": MESSAGES}, compiled)
    assert first == sent({"messages": MESSAGES}, compiled)
    assert first["messages"][0] == {"role": "system", "content": "Be kind."}


def test_nemotron_low_effort_is_a_template_switch() -> None:
    """reasoning_effort does nothing on Nemotron 3 Super: the recipe uses the template's own words."""
    recipe = recipes.find("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4").name
    assert sent({"messages": MESSAGES}, persona(recipe, thinking="low"))["chat_template_kwargs"]["low_effort"] is True


@given(st.lists(st.text(max_size=20), max_size=5))
def test_prefix_is_the_same_bytes_whatever_the_client_says(texts: list[str]) -> None:
    """The bytes up to the client's own text never change: what the engine caches stays valid."""
    compiled = persona(system='Plan "well".\nAlways.')
    messages = [{"role": "user", "content": text} for text in texts or ["x"]]
    raw = json.dumps({"model": "plan", "messages": messages}).encode()
    prepared = prepare("chat", top.split(raw), compiled, "plan", "req_1")
    body = b"".join(bytes(memoryview(piece)) for piece in prepared.pieces)
    start = body.index(b'"messages":')
    assert body[start:].startswith(
        b'"messages":[{"role":"system","content":"Plan \\"well\\".\\nAlways."},{"role": "user"'
    )


def test_explain_prints_exactly_what_is_sent_and_why() -> None:
    """The explanation comes from the very code that serves, with a rule for each field that it set."""
    compiled = persona(system="Plan.", temperature=0.6, enforce={"top_p": 0.9}, thinking="on")
    body = {"model": "plan", "messages": MESSAGES, "temperature": 0.1, "stream": True}
    found = explain("chat", json.dumps(body).encode(), compiled, engine_url="http://e:8000", has_key=True)
    assert found.body == sent(body, compiled)
    assert found.url == "http://e:8000/v1/chat/completions"
    assert "secret" not in str(found.headers)
    rules = dict(found.rules)
    assert set(rules) >= {"model", "messages", "temperature", "top_p", "chat_template_kwargs", "stream_options"}
    assert rules["temperature"].startswith("the client's value")
    assert rules["top_p"] == "enforced by the persona"


def test_explain_masks_the_prompt() -> None:
    """Readers who may not see the prompt see its length."""
    masked = explain(
        "chat", json.dumps({"messages": MESSAGES}).encode(), persona(system="Secret."), engine_url="http://e", mask=True
    )
    assert masked.body["messages"][0]["content"] == "<persona prompt, 7 characters>"


@pytest.mark.parametrize(
    ("fields", "body", "code"),
    [
        ({}, {}, "missing_field"),
        ({}, {"messages": "x"}, "invalid_messages"),
        (
            {"tools": "off"},
            {"messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "f"}}]},
            "tools_not_supported",
        ),
        ({}, {"messages": MESSAGES, "stream": "yes"}, "invalid_type"),
    ],
)
def test_what_the_client_must_put_right(fields: dict[str, Any], body: dict[str, Any], code: str) -> None:
    """A body that no engine could serve is refused with a word for it."""
    with pytest.raises(Fault) as caught:
        sent(body, persona(**({"system": "x"} | fields)))
    assert caught.value.code == code
