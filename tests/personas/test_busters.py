"""Cache busters: the first changed span of a session's requests is named, without keeping any text."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from lmtower.personas.busters import Busters, Change, Conversation, Seen, look
from lmtower.wire import top as tops

SYSTEM = {"role": "system", "content": "You are careful. " * 60}
TURN = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]


def see(busters: Busters, protocol: str = "chat", **body: Any) -> Change | None:
    return busters.see("s", "plan", seen_of(protocol, body))


def seen_of(protocol: str, body: dict[str, Any], earlier: Seen | None = None, said: int = 0) -> Seen:
    turns = body["input" if protocol == "responses" else "messages"]
    new = [json.dumps(turn).encode() for turn in turns[said:]]
    conversation = Conversation([(text, len(text)) for text in new], earlier, said)
    seen = look(protocol, tops.split(json.dumps(body).encode()), conversation)
    assert seen is not None
    return seen


@pytest.mark.parametrize(
    ("before", "after", "span"),
    [
        ({"messages": [SYSTEM, *TURN[:1]]}, {"messages": [SYSTEM, *TURN]}, None),
        ({"messages": [SYSTEM, *TURN]}, {"messages": [SYSTEM, *TURN[:2], {"role": "user", "content": "edited"}]}, None),
        ({"messages": [SYSTEM], "tools": [1, 2]}, {"messages": [SYSTEM], "tools": [2, 1]}, "tools"),
        ({"messages": [SYSTEM, *TURN]}, {"messages": [{**SYSTEM, "content": "14:03 now"}, *TURN]}, "system"),
        ({"messages": [SYSTEM, *TURN]}, {"messages": [SYSTEM, {"role": "user", "content": "z"}, *TURN[1:]]}, "history"),
        ({"messages": [SYSTEM, *TURN, *TURN]}, {"messages": [SYSTEM, *TURN[:1]]}, "history"),
    ],
)
def test_first_changed_span_is_named(before: dict[str, Any], after: dict[str, Any], span: str | None) -> None:
    """Tools come first in a template, then the system text, then the history."""
    busters = Busters()
    assert see(busters, **before) is None
    found = see(busters, **after)
    assert (found and found.span) == span


def test_place_in_the_system_text_is_known_to_a_block() -> None:
    """The person who looks for it gets a place to look at."""
    busters = Busters()
    text = "x" * 1000
    see(busters, messages=[{"role": "system", "content": text + "1" + text}])
    found = see(busters, messages=[{"role": "system", "content": text + "2" + text}])
    assert found is not None
    assert found.at == 1024 - 256 + 256
    assert "byte 1024" in found.place


@pytest.mark.parametrize("protocol", ["messages", "responses"])
def test_other_dialects_are_compared_in_their_own_fields(protocol: str) -> None:
    """system and instructions are top-level fields there."""
    busters = Busters()
    names = {"messages": ("system", "messages"), "responses": ("instructions", "input")}[protocol]
    see(busters, protocol, **{names[0]: "a", names[1]: TURN})
    found = see(busters, protocol, **{names[0]: "b", names[1]: TURN})
    assert found is not None
    assert found.span == "system"


@pytest.mark.parametrize(
    ("protocol", "field"), [("chat", "messages"), ("messages", "messages"), ("responses", "input")]
)
def test_what_an_earlier_request_said_is_not_looked_at_again(protocol: str, field: str) -> None:
    """The hashes of the known messages and of the new ones are those of a look at everything."""
    turns = [SYSTEM, *TURN]
    whole = {"instructions": "a", "system": "b", "tools": [1], field: turns}
    for said in range(1, len(turns) + 1):
        earlier = seen_of(protocol, {field: [*turns[:said], {"role": "x"}]})
        assert seen_of(protocol, whole, earlier, said) == seen_of(protocol, whole)


def test_memory_is_bounded_and_holds_no_text() -> None:
    """Hashes only, of the latest sessions only."""
    busters = Busters(most=3)
    for number in range(10):
        body = {"messages": [{"role": "user", "content": "a secret sentence"}]}
        busters.see(f"s{number}", "plan", seen_of("chat", body))
    assert len(busters) == 3
    assert b"secret" not in pickle.dumps(busters)
    assert busters.report("s9")[0]["requests"] == 1
    assert busters.report("s0") == []
