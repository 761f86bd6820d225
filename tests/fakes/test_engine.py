"""The fake engine does what its scripts say, sees what clients do, and the official SDKs can read it."""

from __future__ import annotations

import base64
import json
import socket
import struct
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.fakes import shapes
from tests.fakes.engine import FakeEngine, ToolCall

CHAT = {"model": "fake-model", "messages": [{"role": "user", "content": "say hello please"}]}


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    with FakeEngine() as engine:
        yield engine


@pytest.fixture
def http(engine: FakeEngine) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=engine.url, timeout=10) as client:
        yield client


def events(text: str) -> list[str]:
    """The data of each event."""
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


def test_chat_answers_with_usage_and_records_the_request(engine: FakeEngine, http: httpx.Client) -> None:
    """A plain chat request is answered in vLLM's shape and kept with headers and body."""
    engine.script(text="one two", cached_tokens=16, image_tokens=3)
    reply = http.post("/v1/chat/completions", json=CHAT, headers={"X-Thing": "1"}).json()
    assert reply["choices"][0]["message"]["content"] == "one two"
    assert reply["usage"] == {
        "prompt_tokens": 3,
        "total_tokens": 5,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 16, "image_tokens": 3},
    }
    [request] = engine.requests
    assert (request.path, request.headers["x-thing"], request.json) == ("/v1/chat/completions", "1", CHAT)
    assert (request.status, request.finished, request.tokens_sent) == (200, True, 2)


def test_stream_ends_with_usage_only_when_asked(engine: FakeEngine, http: httpx.Client) -> None:
    """The usage chunk has no choices, comes before [DONE], and only for those who ask."""
    plain = events(http.post("/v1/chat/completions", json=CHAT | {"stream": True}).text)
    asked = CHAT | {"stream": True, "stream_options": {"include_usage": True}}
    with_usage = events(http.post("/chat/completions", json=asked).text)
    assert plain[-1] == with_usage[-1] == "[DONE]"
    assert all(json.loads(event)["choices"] for event in plain[:-1])
    assert json.loads(with_usage[-2])["choices"] == []
    assert json.loads(with_usage[-2])["usage"]["completion_tokens"] == 5


def test_stream_carries_reasoning_and_tool_calls(engine: FakeEngine, http: httpx.Client) -> None:
    """Reasoning comes first as ``reasoning``, tool calls as an opening delta and pieces of arguments."""
    engine.script(reasoning="let me think", tool_calls=[ToolCall("search", '{"q": "x"}')])
    seen = events(http.post("/v1/chat/completions", json=CHAT | {"stream": True}).text)[:-1]
    deltas = [json.loads(event)["choices"][0] for event in seen]
    assert "".join(d["delta"].get("reasoning", "") for d in deltas) == "let me think"
    calls = [d["delta"]["tool_calls"][0]["function"] for d in deltas if "tool_calls" in d["delta"]]
    assert calls[0] == {"name": "search"}
    assert "".join(call["arguments"] for call in calls[1:]) == '{"q": "x"}'
    assert deltas[-1]["finish_reason"] == "tool_calls"


def test_max_tokens_cuts_the_answer(engine: FakeEngine, http: httpx.Client) -> None:
    """``max_tokens`` is obeyed and told as the finish reason."""
    choice = http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 2}).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello from", "length")


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_is_seen_at_once(engine: FakeEngine, stream: bool) -> None:
    """A client that leaves is noted within milliseconds, streaming or not."""
    engine.script(delay=0.01, stall_after=2)
    body = json.dumps(CHAT | {"stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((engine.host, engine.port)) as client:
        client.sendall(head + body)
        engine.wait_for(lambda e: e.running == 1)
        if stream:
            engine.wait_for(lambda e: e.requests[0].tokens_sent == 2)
        left = time.monotonic()
    [disconnect] = engine.wait_for(lambda e: e.disconnects)
    assert disconnect.time - left < 0.2
    assert disconnect.tokens_sent == (2 if stream else 0)
    assert engine.wait_for(lambda e: e.running == 0)


@pytest.mark.parametrize("how", ["rst", "close", "truncate"])
def test_death_in_mid_stream_cuts_the_answer(engine: FakeEngine, http: httpx.Client, how: str) -> None:
    """Deaths break the connection; ``truncate`` ends the stream in good form but without [DONE]."""
    engine.script(die_after=1, die_how=how)
    got = b""
    with http.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as reply:
        try:
            for part in reply.iter_raw():
                got += part
        except httpx.TransportError:
            assert how != "truncate"
        else:
            assert how == "truncate"
    assert b"Hello" in got
    assert b"from" not in got
    assert not engine.disconnects


def test_death_before_the_answer_breaks_the_connection(engine: FakeEngine, http: httpx.Client) -> None:
    """-1 kills before the status line."""
    engine.script(die_after=-1)
    with pytest.raises(httpx.TransportError):
        http.post("/v1/chat/completions", json=CHAT)


def test_scripts_with_times_are_used_up_in_order(engine: FakeEngine, http: httpx.Client) -> None:
    """Two special answers, then the standing one."""
    engine.script(text="always")
    engine.script(times=1, status=503)
    engine.script(times=1, error=shapes.overflow(8192, 9000), status=400, path="/v1/chat/completions")
    replies = [http.post("/v1/chat/completions", json=CHAT) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [503, 400, 200]
    assert replies[0].json()["error"]["code"] == 503
    assert replies[1].json()["error"]["type"] == "BadRequestError"
    assert replies[2].json()["choices"][0]["message"]["content"] == "always"


def test_error_in_mid_stream_is_an_event(engine: FakeEngine, http: httpx.Client) -> None:
    """vLLM reports a failure after the first token as an error event and [DONE]."""
    engine.script(error_after=2)
    seen = events(http.post("/v1/completions", json={"model": "fake-model", "prompt": "a", "stream": True}).text)
    assert json.loads(seen[-2])["error"]["code"] == 500
    assert seen[-1] == "[DONE]"


def test_refusals_have_the_engines_shapes(engine: FakeEngine, http: httpx.Client) -> None:
    """Unknown model, broken JSON, unknown route and wrong key look as vLLM makes them look."""
    assert http.post("/v1/chat/completions", json=CHAT | {"model": "x"}).json()["error"]["type"] == "NotFoundError"
    assert http.post("/v1/chat/completions", content=b"{").json()["error"]["code"] == 400
    assert http.post("/v1/nothing", json={}).json() == {"detail": "Not Found"}
    engine.api_key = "secret"
    assert http.post("/v1/chat/completions", json=CHAT).json() == {"error": "Unauthorized"}
    assert http.post("/v1/chat/completions", json=CHAT, headers={"Authorization": "Bearer secret"}).is_success


def test_embeddings_come_as_numbers_and_as_base64(engine: FakeEngine, http: httpx.Client) -> None:
    """Both encodings hold the same vector, in the order of the inputs."""
    body = {"model": "fake-model", "input": ["a", "b"]}
    numbers = http.post("/v1/embeddings", json=body).json()
    packed = http.post("/v1/embeddings", json=body | {"encoding_format": "base64"}).json()
    assert [item["index"] for item in numbers["data"]] == [0, 1]
    unpacked = struct.unpack("<8f", base64.b64decode(packed["data"][1]["embedding"]))
    assert list(unpacked) == pytest.approx(numbers["data"][1]["embedding"])
    assert numbers["usage"]["prompt_tokens"] == 2


def test_the_openai_sdk_reads_chat_stream_and_responses(engine: FakeEngine) -> None:
    """The official client parses whole answers, streams and the events of responses."""
    from openai import OpenAI

    engine.script(text="a b c", reasoning="hm", cached_tokens=1)
    with OpenAI(base_url=engine.url + "/v1", api_key="x", max_retries=0) as client:
        chat = client.chat.completions.create(model="fake-model", messages=[{"role": "user", "content": "hi"}])
        assert chat.choices[0].message.content == "a b c"
        with client.responses.stream(model="fake-model", input="hi") as stream:
            final = stream.get_final_response()
        assert final.output_text == "a b c"
        assert final.usage is not None
        assert final.usage.output_tokens == 4
        vectors = client.embeddings.create(model="fake-model", input=["x"]).data
        assert len(vectors[0].embedding) == 8


def test_the_anthropic_sdk_reads_messages(engine: FakeEngine) -> None:
    """The official client accumulates thinking, text and tool use from the stream, and counts tokens."""
    from anthropic import Anthropic

    engine.script(text="a b", reasoning="hm hm", tool_calls=[ToolCall("find", '{"q": 1}')], input_tokens=9)
    with Anthropic(base_url=engine.url, api_key="x", max_retries=0) as client:
        with client.messages.stream(
            model="fake-model", max_tokens=99, messages=[{"role": "user", "content": "hi there"}]
        ) as stream:
            final = stream.get_final_message()
        assert [block.type for block in final.content] == ["thinking", "text", "tool_use"]
        assert (final.stop_reason, final.usage.input_tokens) == ("tool_use", 9)
        counted = client.messages.count_tokens(model="fake-model", messages=[{"role": "user", "content": "hi there"}])
        assert counted.input_tokens == 2


def test_other_routes_answer(engine: FakeEngine, http: httpx.Client) -> None:
    """Rerank, tokenize, infill, models, health and metrics speak their own shapes."""
    ranked = http.post("/v1/rerank", json={"query": "red fox", "documents": ["blue sky", "red fox"]}).json()
    assert [result["index"] for result in ranked["results"]] == [1, 0]
    assert http.post("/tokenize", json={"model": "fake-model", "prompt": "a b c"}).json()["count"] == 3
    assert http.post("/infill", json={"input_prefix": "def f("}).json()["content"] == "Hello from the fake engine."
    assert http.get("/v1/models").json()["data"][0]["max_model_len"] == 8192
    assert http.get("/health").status_code == 200
    engine.healthy = False
    assert http.get("/health").status_code == 503
    assert "vllm:num_requests_running{" in http.get("/metrics").text


def test_sequences_limit_what_runs_at_once(engine: FakeEngine) -> None:
    """With one sequence the second request waits until the first is through."""
    with FakeEngine(sequences=1) as narrow:
        gate = narrow.gate()
        narrow.script(gate=gate)
        body = json.dumps(CHAT).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        with (
            socket.create_connection((narrow.host, narrow.port)) as first,
            socket.create_connection((narrow.host, narrow.port)) as second,
        ):
            first.sendall(head + body)
            second.sendall(head + body)
            narrow.wait_for(lambda e: (e.running, e.waiting) == (1, 1))
            gate.open()
            narrow.wait_for(lambda e: len(e.requests) == 2 and all(r.finished for r in e.requests))
        assert narrow.most_running == 1


def test_crash_and_restart_keep_the_address(engine: FakeEngine) -> None:
    """A crashed engine refuses connections; restarted it answers at the same port."""
    engine.crash()
    with pytest.raises(httpx.ConnectError):
        httpx.get(engine.url + "/health")
    engine.restart()
    assert httpx.get(engine.url + "/health").status_code == 200


def test_split_cuts_the_stream_into_small_pieces(engine: FakeEngine, http: httpx.Client) -> None:
    """However small the pieces, the bytes are the same."""
    engine.script(raw=[b"data: {}\n\n", b"data: [DONE]\n\n"], split=3)
    assert http.post("/v1/chat/completions", json=CHAT | {"stream": True}).text == "data: {}\n\ndata: [DONE]\n\n"


async def test_until_waits_without_blocking_the_loop(engine: FakeEngine) -> None:
    """The coroutine form returns what the predicate found, and times out with what was seen."""
    async with httpx.AsyncClient(base_url=engine.url) as client:
        await client.post("/v1/chat/completions", json=CHAT)
    [request] = await engine.until(lambda e: e.to("/chat/completions"))
    assert request.status == 200
    with pytest.raises(TimeoutError, match="FakeEngine"):
        await engine.until(lambda e: e.disconnects, timeout=0.01)
