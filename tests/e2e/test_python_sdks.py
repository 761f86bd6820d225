"""The OpenAI and Anthropic SDKs of this environment, unchanged, against the gateway."""

from __future__ import annotations

import json
from pathlib import Path

import anthropic
import openai
import pytest
from pydantic import BaseModel

from tests.fakes.engine import FakeEngine, ToolCall
from tests.gateway.support import Running, running

PERSONAS = {
    "plan": {"engine": "big", "system": "You plan."},
    "agent": {"engine": "big", "tools": "strict"},
    "claude-local": {"engine": "big", "aliases": ["claude-*"]},
    "coder": {"engine": "big", "fim": "qwen2.5-coder"},
}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
ASK = [{"role": "user", "content": "hello"}]


def openai_client(tower: Running, **fields: object) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{tower.base}/v1", api_key=tower.key, max_retries=0, **fields)


def anthropic_client(tower: Running) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=tower.base, auth_token=tower.key, max_retries=0)


async def test_openai_chat_streams_and_counts(tmp_path: Path) -> None:
    """A whole answer, a stream with usage, and the models list."""
    with FakeEngine() as engine:
        engine.script(text="one two three", reasoning="hm", cached_tokens=2)
        async with running(tmp_path, engine, personas=PERSONAS) as tower, openai_client(tower) as client:
            whole = await client.chat.completions.create(model="plan", messages=ASK)
            stream = await client.chat.completions.create(
                model="plan", messages=ASK, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            listed = [model.id async for model in client.models.list()]
    assert whole.choices[0].message.content == "one two three"
    assert whole.model == "plan"
    assert whole._request_id
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two three"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens_details is not None
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 2
    assert listed == list(PERSONAS)


async def test_openai_tools_helper_gets_parsed_arguments(tmp_path: Path) -> None:
    """The SDK's own parsing of a streamed tool call, with arguments that the engine broke."""

    class Weather(BaseModel):
        city: str
        days: int

    with FakeEngine() as engine:
        engine.script(tool_calls=[ToolCall("Weather", '{"city": "Oslo", "days": "3"')])
        async with running(tmp_path, engine, personas=PERSONAS) as tower, openai_client(tower) as client:
            tools = [openai.pydantic_function_tool(Weather)]
            async with client.chat.completions.stream(model="agent", messages=ASK, tools=tools) as stream:
                final = await stream.get_final_completion()
    [call] = final.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == Weather(city="Oslo", days=3)
    assert final.choices[0].finish_reason == "tool_calls"


async def test_openai_responses_end_with_completed(tmp_path: Path) -> None:
    """Both forms, with a function call in the stream."""
    tool = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
    with FakeEngine() as engine:
        engine.script(text="Look:", tool_calls=[ToolCall("weather", '{"city": "Oslo", "days": "3"}')])
        async with running(tmp_path, engine, personas=PERSONAS) as tower, openai_client(tower) as client:
            whole = await client.responses.create(model="agent", input="hello", tools=[tool])
            stream = await client.responses.create(model="agent", input="hello", tools=[tool], stream=True)
            events = [event async for event in stream]
    calls = [item for item in whole.output if item.type == "function_call"]
    assert json.loads(calls[0].arguments) == {"city": "Oslo", "days": 3}
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage.total_tokens > 0
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_openai_embeddings_default_to_base64_and_decode(tmp_path: Path) -> None:
    """The SDK asks for base64 by itself and gives floats to its user."""
    with FakeEngine() as engine:
        engine.script(vector=[0.25, -0.5])
        async with running(tmp_path, engine, personas=PERSONAS) as tower, openai_client(tower) as client:
            found = await client.embeddings.create(model="plan", input=["a", "b"])
        assert engine.requests[-1].json["encoding_format"] == "base64"
    assert [row.embedding for row in found.data] == [[0.25, -0.5]] * 2


async def test_openai_completion_with_suffix_fills_the_middle(tmp_path: Path) -> None:
    """vLLM refuses suffix for nearly every model; here it works."""
    with FakeEngine() as engine:
        engine.script(text="a + b")
        async with running(tmp_path, engine, personas=PERSONAS) as tower, openai_client(tower) as client:
            found = await client.completions.create(model="coder", prompt="x = ", suffix="\n")
        assert engine.requests[-1].json["prompt"].startswith("<|fim_prefix|>x = ")
    assert found.choices[0].text == "a + b"


@pytest.mark.parametrize(
    ("fields", "error"),
    [({"model": "nope"}, openai.NotFoundError), ({"model": "plan", "messages": 5}, openai.BadRequestError)],
)
async def test_openai_errors_are_the_sdks_own_classes(
    tmp_path: Path, fields: dict[str, object], error: type[openai.APIStatusError]
) -> None:
    """With code, type and request id filled in."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine, personas=PERSONAS) as tower, openai_client(tower) as client:
            with pytest.raises(error) as caught:
                await client.chat.completions.create(**{"messages": ASK, **fields})
    assert isinstance(caught.value.code, str)
    assert caught.value.request_id


async def test_openai_stream_error_is_raised_in_the_middle(tmp_path: Path) -> None:
    """The engine dies: the SDK raises instead of giving a short answer."""
    with FakeEngine() as engine:
        engine.script(text="a b c d", die_after=2)
        async with running(tmp_path, engine, personas=PERSONAS) as tower, openai_client(tower) as client:
            stream = await client.chat.completions.create(model="plan", messages=ASK, stream=True)
            with pytest.raises(openai.APIError, match="engine"):
                async for _ in stream:
                    pass


async def test_anthropic_messages_stream_with_thinking_tools_and_usage(tmp_path: Path) -> None:
    """The SDK's accumulated message equals the whole one; cached tokens are told."""
    tool = {"name": "weather", "input_schema": SCHEMA}
    with FakeEngine() as engine:
        call = ToolCall("weather", '{"city": "Oslo", "days": 3}')
        engine.script(text="Look:", reasoning="hm", tool_calls=[call], input_tokens=30, cached_tokens=10)
        async with running(tmp_path, engine, personas=PERSONAS) as tower, anthropic_client(tower) as client:
            request = {"model": "claude-of-the-house", "max_tokens": 100, "messages": ASK, "tools": [tool]}
            whole = await client.messages.create(**request)
            async with client.messages.stream(**request) as stream:
                streamed = await stream.get_final_message()
            count = await client.messages.count_tokens(model="claude-x", messages=ASK)
    assert [block.type for block in streamed.content] == ["thinking", "text", "tool_use"]
    assert streamed.content[-1].input == {"city": "Oslo", "days": 3}
    assert streamed.model == whole.model == "claude-of-the-house"
    assert streamed.stop_reason == whole.stop_reason == "tool_use"
    assert whole.usage.cache_read_input_tokens == 10
    assert count.input_tokens > 0


async def test_anthropic_strict_persona_repairs_the_streamed_input(tmp_path: Path) -> None:
    """input_json_delta parts always add up to valid JSON."""
    tool = {"name": "weather", "input_schema": SCHEMA}
    with FakeEngine() as engine:
        engine.script(tool_calls=[ToolCall("weather", '{"city": "Oslo", "days": "3"')])
        async with running(tmp_path, engine, personas=PERSONAS) as tower, anthropic_client(tower) as client:
            manager = client.messages.stream(model="agent", max_tokens=9, messages=ASK, tools=[tool])
            async with manager as stream:
                message = await stream.get_final_message()
    assert message.content[-1].input == {"city": "Oslo", "days": 3}


async def test_anthropic_errors_are_the_sdks_own_classes(tmp_path: Path) -> None:
    """401 and 404 in Anthropic's envelope; an error in a stream is raised."""
    with FakeEngine() as engine:
        engine.script(text="a b c d", error_after=2)
        async with running(tmp_path, engine, personas=PERSONAS) as tower, anthropic_client(tower) as client:
            with pytest.raises(anthropic.NotFoundError, match="does not exist"):
                await client.messages.create(model="nope", max_tokens=5, messages=ASK)
            stranger = client.with_options(auth_token="sk-nobody")
            with pytest.raises(anthropic.AuthenticationError):
                await stranger.messages.create(model="plan", max_tokens=5, messages=ASK)
            with pytest.raises(anthropic.APIStatusError):
                async with client.messages.stream(model="plan", max_tokens=50, messages=ASK) as stream:
                    await stream.get_final_message()
