"""Responses by id: gone on from, read, listed and deleted, by their owner only, as the OpenAI SDK does it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from lmtower.gateway.remembered import Remembered
from lmtower.wire import keeping
from lmtower.wire import top as tops
from lmtower.wire.faults import Fault
from lmtower.wire.responses import ResponsesReply
from tests.fakes.engine import FakeEngine, ToolCall
from tests.gateway.support import Running, running

PERSONAS = {"plan": {"engine": "big", "system": "You plan."}, "agent": {"engine": "big", "tools": "strict"}}
TOOL: Any = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}


@asynccontextmanager
async def tower_and_sdk(folder: Path, **gateway: Any) -> AsyncIterator[tuple[Running, FakeEngine, openai.AsyncOpenAI]]:
    with FakeEngine() as engine:
        async with (
            running(folder, engine, personas=PERSONAS, gateway=gateway) as tower,
            openai.AsyncOpenAI(base_url=f"{tower.base}/v1", api_key=tower.key, max_retries=0) as client,
        ):
            yield tower, engine, client


def inputs(engine: FakeEngine) -> list[Any]:
    return [request.json["input"] for request in engine.requests if request.method == "POST"]


@pytest.mark.parametrize("stream", [False, True])
async def test_conversation_goes_on_from_an_id(tmp_path: Path, stream: bool) -> None:
    """The engine gets the whole conversation each time; instructions are not carried over; nothing is stored there."""
    async with tower_and_sdk(tmp_path) as (_, engine, client):
        engine.script(text="one two")

        async def say(text: Any, **fields: Any) -> Any:
            if not stream:
                return await client.responses.create(model="plan", input=text, **fields)
            events = [e async for e in await client.responses.create(model="plan", input=text, stream=True, **fields)]
            return events[-1].response

        first = await say("first", instructions="Be short.")
        second = await say([{"role": "user", "content": "second"}], previous_response_id=first.id)
        third = await say("third", previous_response_id=second.id)
    answer = [part for part in inputs(engine)[1] if part.get("type") == "message"]
    assert inputs(engine)[0] == "first"
    assert [item["role"] for item in inputs(engine)[2]] == ["user", "assistant", "user", "assistant", "user"]
    assert inputs(engine)[2][:3] == inputs(engine)[1]
    assert answer[0]["content"][0]["text"] == "one two"
    posts = [request.json for request in engine.requests if request.method == "POST"]
    assert [body["instructions"] for body in posts] == ["You plan.\n\nBe short.", "You plan.", "You plan."]
    assert all(body["store"] is False and "previous_response_id" not in body for body in posts)
    assert (third.previous_response_id, third.model_extra.get("store")) == (second.id, True)


async def test_tool_results_answer_a_kept_call(tmp_path: Path) -> None:
    """The call that the result belongs to is part of what the engine gets."""
    async with tower_and_sdk(tmp_path) as (_, engine, client):
        engine.script(text="sunny")
        engine.script(times=1, tool_calls=[ToolCall("weather", "{}")])
        first = await client.responses.create(model="agent", input="weather?", tools=[TOOL])
        call: Any = next(item for item in first.output if item.type == "function_call")
        result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "sun"}]
        last = await client.responses.create(model="agent", input=result, previous_response_id=first.id, tools=[TOOL])
    assert last.output_text == "sunny"
    kinds = [item.get("type", "message") for item in inputs(engine)[1]]
    assert kinds == ["message", "function_call", "function_call_output"]


async def test_response_is_read_listed_and_deleted(tmp_path: Path) -> None:
    """As the SDK reads it; after deletion nobody goes on from it."""
    async with tower_and_sdk(tmp_path) as (tower, engine, client):
        engine.script(text="one two")
        first = await client.responses.create(model="plan", input="first")
        second = await client.responses.create(model="plan", input="second", previous_response_id=first.id)
        read = await client.responses.retrieve(second.id)
        newest = await client.responses.input_items.list(second.id, limit=2)
        oldest = [item async for item in client.responses.input_items.list(second.id, order="asc", limit=1)]
        with pytest.raises(openai.BadRequestError):
            await client.responses.cancel(second.id)
        streamed = await tower.client.get(f"/v1/responses/{second.id}?stream=true")
        await client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="plan", input="x", previous_response_id=second.id)
        wrong = await tower.client.put(f"/v1/responses/{second.id}")
        unknown = await tower.client.get(f"/v1/responses/{second.id}/nothing")
    assert read == second
    assert (newest.has_more, len(newest.data)) == (True, 2)
    texts = [getattr(item, "content", None) and item.content[0].text for item in oldest]
    assert texts == ["first", "one two", "second"]
    assert streamed.status_code == 400
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")
    assert (wrong.status_code, unknown.status_code) == (405, 404)


async def test_response_belongs_to_its_key(tmp_path: Path) -> None:
    """To another key it does not exist, whatever is asked of it."""
    async with tower_and_sdk(tmp_path) as (tower, _, client):
        mine = await client.responses.create(model="plan", input="secret")
        other = client.with_options(api_key=tower.gateway.ledger.create_key("other").secret)
        for ask in (other.responses.retrieve, other.responses.delete, other.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                await ask(mine.id)
        with pytest.raises(openai.BadRequestError):
            await other.responses.create(model="plan", input="x", previous_response_id=mine.id)
        assert (await client.responses.retrieve(mine.id)).id == mine.id


async def test_store_false_and_a_tower_that_keeps_none_keep_nothing(tmp_path: Path) -> None:
    """Codex says store: false; an operator may say keep_responses: 0."""
    async with tower_and_sdk(tmp_path) as (tower, _, client):
        first = await client.responses.create(model="plan", input="x", store=False)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)
        assert len(tower.gateway.handler.remembered) == 0
    async with tower_and_sdk(tmp_path / "b", keep_responses=0) as (tower, _, client):
        await client.responses.create(model="plan", input="x")
        assert len(tower.gateway.handler.remembered) == 0


def test_kept_responses_are_bounded_in_bytes_and_time() -> None:
    """The one that was not used for longest leaves first; what is too old is gone."""
    now = [0.0]
    kept = Remembered(lambda: now[0], most_bytes=5000)

    def turn(number: int, previous: str = "", size: int = 1000) -> None:
        body = {"input": "x" * size} | ({"previous_response_id": previous} if previous else {})
        opening = kept.open("me", tops.split(keeping._encode(body)), seconds=100)
        assert opening is not None
        kept.keep(opening, ResponsesReply("s", "a", "q")).body(b'{"id":"r%d","output":[]}' % number)

    for number in range(3):
        turn(number)
    turn(3, previous="r0")  # uses r0, so that r1 is the oldest
    turn(4, size=100_000)
    assert [identity for _, identity in kept._turns] == ["r0", "r3"] or len(kept) <= 3
    assert kept._find("me", "r1") is None
    assert kept._bytes <= 5000
    now[0] = 101.0
    with pytest.raises(Fault):
        turn(5, previous="r3")
    turn(6)
    assert [identity for _, identity in kept._turns] == ["r6"]
