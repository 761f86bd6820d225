"""Chat through the whole gateway: personas, streams, usage, errors."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.fakes.engine import FakeEngine
from tests.gateway.support import PERSONAS, events, running, tower_of, until, upstream


async def test_four_personas_send_four_different_bodies(tmp_path: Path) -> None:
    """The same request, sent to four personas, reaches the one engine as four different bodies."""
    with FakeEngine("served") as engine:
        async with running(tmp_path, engine) as tower:
            for name in PERSONAS:
                answer = await tower.chat(name)
                assert answer.status_code == 200
                assert answer.json()["model"] == name
        bodies = [request.json for request in engine.requests if request.path.endswith("completions")]
    assert [body["model"] for body in bodies] == ["served"] * 4
    assert [body["temperature"] for body in bodies] == [0.6, 0.2, 0.3, 0]
    assert [body["messages"][0]["content"] for body in bodies] == ["You plan.", "hello", "You write code.", "hello"]
    assert [body["chat_template_kwargs"] for body in bodies] == [
        {"enable_thinking": True},
        {"enable_thinking": True, "low_effort": True},
        {"enable_thinking": True},
        {"enable_thinking": False},
    ]


async def test_stream_without_usage_asked_sends_no_usage_chunk_but_records_it(tmp_path: Path) -> None:
    """Usage is metered always and forwarded only when the client asked for it."""
    with FakeEngine() as engine:
        engine.script(text="a b c", input_tokens=30, cached_tokens=16)
        async with running(tmp_path, engine) as tower:
            silent = await tower.chat(stream=True)
            asked = await tower.chat(stream=True, stream_options={"include_usage": True})
            records = await tower.records(2)
    assert silent.headers["content-type"].startswith("text/event-stream")
    assert all(not chunk.get("usage") for chunk in events(silent.text))
    assert silent.text.endswith("data: [DONE]\n\n")
    last = events(asked.text)[-1]
    assert (last["choices"], last["usage"]["prompt_tokens"]) == ([], 30)
    assert {chunk["model"] for chunk in events(asked.text)} == {"plan"}
    assert [(r.input_tokens, r.cached_tokens, r.output_tokens, r.outcome) for r in records] == [(30, 16, 3, "ok")] * 2
    assert all(r.ttft_seconds is not None and r.ttft_seconds <= r.duration_seconds for r in records)


@pytest.mark.parametrize("header", ["x-api-key", "api-key", "x-litellm-api-key"])
async def test_key_in_any_header_is_accepted_beside_a_dummy(tmp_path: Path, header: str) -> None:
    """A valid key counts wherever it is, even beside a dummy in another header."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine) as tower:
            headers = {"authorization": "Bearer dummy", header: tower.key}
            answer = await tower.client.get("/v1/models", headers=headers)
            refused = await tower.client.get("/v1/models", headers={"authorization": "Bearer dummy"})
    assert answer.status_code == 200
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"


async def test_errors_are_openai_objects_with_request_ids(tmp_path: Path) -> None:
    """Every refusal is the OpenAI error object with a string code, the right status and an x-request-id."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine, gateway={"max_body": 2000}) as tower:
            only_fast = tower.gateway.ledger.create_key("fast-only", personas=["fast"]).secret
            post = tower.client.post
            cases = [
                (await post("/v1/chat/completions", content=b"{nope"), 400, "invalid_json"),
                (await post("/v1/chat/completions", content=b""), 400, "invalid_json"),
                (await post("/v1/chat/completions", json={"model": "plan"}), 400, "missing_field"),
                (await tower.chat("nobody"), 404, "model_not_found"),
                (await tower.chat(text="x" * 3000), 413, "request_too_large"),
                (await tower.client.get("/v1/nothing"), 404, "unknown_route"),
                (await tower.client.get("/v1/chat/completions"), 405, "method_not_allowed"),
            ]
            headers = {"authorization": f"Bearer {only_fast}"}
            body = {"model": "plan", "messages": [{"role": "user", "content": "x"}]}
            cases.append((await post("/v1/chat/completions", json=body, headers=headers), 403, "model_not_allowed"))
            listed = await tower.client.get("/v1/models", headers=headers)
        for answer, status, code in cases:
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
            assert answer.headers["x-request-id"]
        assert [model["id"] for model in listed.json()["data"]] == ["fast"]


async def test_routes_are_served_with_and_without_v1(tmp_path: Path) -> None:
    """Clients that append /v1, that do not, and that append it twice all arrive."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine) as tower:
            body = {"model": "plan", "messages": [{"role": "user", "content": "x"}]}
            paths = ["/chat/completions", "/v1/chat/completions/", "/v1/v1/chat/completions"]
            paths += ["/openai/deployments/plan/chat/completions", "/v1/chat/completions?api-version=1"]
            assert [(await tower.client.post(path, json=body)).status_code for path in paths] == [200] * 5
            for path in ("/models", "/v1/models", "/v1/models/plan", "/healthz", "/readyz", "/"):
                assert (await tower.client.get(path)).status_code == 200
            assert (
                await tower.client.post("/v1/completions", json={"model": "plan", "prompt": "x"})
            ).status_code == 200


async def test_engine_errors_are_translated(tmp_path: Path) -> None:
    """vLLM's integer codes and types never reach a client; a 500 of the engine is a 502 of ours."""
    overflow = "This model's maximum context length is 100 tokens. However, your request has 250 input tokens."
    with FakeEngine() as engine:
        async with running(tmp_path, engine) as tower:
            engine.script(
                times=1, status=400, error={"error": {"message": overflow, "type": "BadRequestError", "code": 400}}
            )
            too_long = await tower.chat()
            engine.script(times=1, status=500, error={"error": {"message": "boom", "code": 500}})
            broken = await tower.chat(stream=True)
            engine.script(times=1, status=401, error={"error": "Unauthorized"})
            keyless = await tower.chat()
            records = await tower.records(3)
    assert (too_long.status_code, too_long.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "maximum context length is 100 tokens" in too_long.json()["error"]["message"]
    assert (broken.status_code, broken.json()["error"]["code"]) == (502, "engine_error")
    assert (keyless.status_code, keyless.json()["error"]["code"]) == (502, "engine_refused")
    assert [r.outcome for r in records] == ["refused", "upstream_error", "upstream_error"]


async def test_engine_error_that_quotes_the_prompt_is_replaced(tmp_path: Path) -> None:
    """A validation message that repeats the persona's prompt does not reach the client."""
    secret = "You are the secret planner of the house of tests."
    with FakeEngine() as engine:
        engine.script(status=400, error={"error": {"message": f"bad input: {secret}", "code": 400}})
        personas = {"plan": {"engine": "big", "system": secret}}
        async with running(tmp_path, engine, personas=personas) as tower:
            answer = await tower.chat()
    assert answer.status_code == 400
    assert "secret planner" not in answer.text


async def test_engine_down_is_502_and_recovers_by_itself(tmp_path: Path) -> None:
    """A dead engine is a clean 502; when it is back, requests succeed without a restart."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine) as tower:
            assert (await tower.chat()).status_code == 200
            engine.crash()
            for stream in (False, True, False, True):
                answer = await tower.chat(stream=stream)
                assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_unavailable")
            engine.restart()
            replica = tower.gateway.snapshot.engines["big"].replicas[0]
            await until(lambda: replica.healthy and replica.circuit.state(tower.gateway.clock()) == "closed")
            assert (await tower.chat()).status_code == 200


@pytest.mark.parametrize("how", ["rst", "close", "truncate"])
async def test_engine_dying_mid_stream_ends_with_an_error_event_and_a_cut(tmp_path: Path, how: str) -> None:
    """A truncated answer can never look complete: error event, no [DONE], no final chunk."""
    with FakeEngine() as engine:
        engine.script(text="one two three four", die_after=2, die_how=how)
        async with running(tmp_path, engine) as tower:
            text = await tower.cut_stream()
            record = (await tower.records(1))[0]
    assert events(text)[-1]["error"]["code"] in ("engine_unavailable", "engine_error")
    assert "[DONE]" not in text
    assert record.outcome == "upstream_error"
    assert record.output_tokens >= 2


@pytest.mark.parametrize("stream", [True, False])
async def test_client_that_leaves_cancels_the_engine_at_once(
    tmp_path: Path, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine sees the disconnect, streaming or not, by no look that comes once a second; what was used is
    recorded."""
    with FakeEngine() as engine:
        engine.script(text="word " * 500, delay=0.02)
        async with running(tmp_path, engine) as tower:
            monkeypatch.setattr(tower.gateway.watch, "tick", lambda *_: None)
            monkeypatch.setattr(tower.gateway.server, "tick", lambda *_: None)
            request = asyncio.create_task(tower.chat(stream=stream))
            if stream:
                await until(lambda: engine.running)
            await until(lambda: any(r.path.endswith("completions") for r in engine.requests))
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            await engine.until(lambda e: e.disconnects, timeout=5)
            record = (await tower.records(1))[0]
            assert tower.gateway.snapshot.engines["big"].admission.in_flight == 0
    assert (record.outcome, record.status) == ("cancelled", 499)
    assert record.input_tokens > 0


async def test_queued_request_leaves_with_its_client(tmp_path: Path) -> None:
    """A request that waits for a slot disappears when its client does and never reaches the engine."""
    with FakeEngine() as engine:
        gate = engine.gate()
        engine.script(gate=gate)
        async with running(tmp_path, engine, upstreams=[upstream(engine, slots=1)]) as tower:
            admission = tower.gateway.snapshot.engines["big"].admission
            first = asyncio.create_task(tower.chat())
            await until(lambda: admission.in_flight == 1)
            second = asyncio.create_task(tower.chat())
            await until(lambda: admission.queued()["default"] == 1)
            second.cancel()
            await until(lambda: admission.queued()["default"] == 0)
            gate.open()
            assert (await first).status_code == 200
            records = await tower.records(2)
    assert sorted(r.outcome for r in records) == ["cancelled", "ok"]
    assert sum(r.path.endswith("completions") for r in engine.requests) == 1


async def test_full_queue_is_429_with_integer_retry_after(tmp_path: Path) -> None:
    """A full lane refuses at once, before any header went out, and says when to come back."""
    with FakeEngine() as engine:
        gate = engine.gate()
        engine.script(gate=gate)
        lanes = tower_of(engine).engines["big"].lanes.model_copy(update={"queue": 1, "deadline": 0.05})
        async with running(tmp_path, engine, upstreams=[upstream(engine, slots=1, lanes=lanes)]) as tower:
            admission = tower.gateway.snapshot.engines["big"].admission
            first = asyncio.create_task(tower.chat())
            await until(lambda: admission.in_flight == 1)
            late = asyncio.create_task(tower.chat(stream=True))
            await until(lambda: admission.queued()["default"] == 1)
            full = await tower.chat(stream=True)
            expired = await late
            gate.open()
            await first
    for answer in (full, expired):
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(answer.headers["retry-after"]) <= 60


async def test_silent_engine_gets_the_client_keepalives(tmp_path: Path) -> None:
    """While the engine is silent the client is sent comments, and the answer still follows."""
    with FakeEngine() as engine:
        gate = engine.gate()
        engine.script(gate=gate)
        async with running(tmp_path, engine, gateway={"keepalive": 0.05}) as tower:
            body = {"model": "plan", "messages": [{"role": "user", "content": "x"}], "stream": True}
            text = ""
            async with tower.client.stream("POST", "/v1/chat/completions", json=body) as answer:
                async for piece in answer.aiter_text():
                    text += piece
                    if text.count(": keepalive\n\n") == 2:
                        gate.open()
    assert text.startswith(": keepalive\n\n")
    assert text.endswith("data: [DONE]\n\n")


async def test_silence_is_never_longer_than_the_interval(tmp_path: Path) -> None:
    """A comment goes out before the interval is over when the next look would come after it."""
    with FakeEngine() as engine:
        gate = engine.gate()
        engine.script(gate=gate)
        async with running(tmp_path, engine, gateway={"keepalive": 15}) as tower:
            settings = tower.gateway.snapshot.tower.gateway
            stream = asyncio.create_task(tower.chat(stream=True))
            await engine.until(lambda e: e.to("/chat/completions"))
            [relay] = tower.gateway.watch.relays
            for seconds, sent in ((13.9, False), (14.1, True)):
                now = relay.last_write + seconds
                tower.gateway.watch.tick(now, settings)
                assert (relay.last_write == now) == sent
            gate.open()
            assert ": keepalive" in (await stream).text


async def test_slow_engine_is_given_up_after_the_configured_time(tmp_path: Path) -> None:
    """No first token within gateway.first_token_timeout is an error; so is silence in the middle. To ask again would
    take as long, and it is no failure of the engine that others must hear of."""
    with FakeEngine() as engine:
        engine.script(text="a b c", stall_after=1)
        settings = {"first_token_timeout": 0.2, "idle_timeout": 0.2, "keepalive": 0.1}
        async with running(tmp_path, engine, gateway=settings) as tower:
            text = await tower.cut_stream()
            whole = [await tower.chat()]
            engine.script(header_delay=60)
            whole += [await tower.chat() for _ in range(3)]
            headless = await tower.cut_stream()
            await engine.until(lambda e: len(e.disconnects) == 6, timeout=5)
            circuit = tower.gateway.snapshot.engines["big"].replicas[0].circuit.state(tower.gateway.clock())
    for stream in (text, headless):
        assert events(stream)[-1]["error"]["code"] == "engine_timeout"
    for answer in whole:
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "engine_timeout")
        assert answer.headers["x-should-retry"] == "false"
    assert circuit == "closed"


async def test_client_that_stops_reading_is_given_up_without_blaming_the_engine(tmp_path: Path) -> None:
    """The engine waits for it, nothing gathers here, no comment is put in between; then its slot is free."""
    token = "y" * 50_000
    with FakeEngine() as engine:
        engine.script(tokens=[token] * 401, stall_after=400)
        async with running(tmp_path, engine) as tower:
            settings, clock = tower.gateway.snapshot.tower.gateway, tower.gateway.clock
            admission = tower.gateway.snapshot.engines["big"].admission
            _reader, writer = await asyncio.open_connection("127.0.0.1", tower.port, limit=1024)
            body = b'{"model":"plan","stream":true,"messages":[{"role":"user","content":"x"}]}'
            head = f"POST /v1/chat/completions HTTP/1.1\r\nx-api-key: {tower.key}\r\ncontent-length: {len(body)}"
            writer.write(head.encode() + b"\r\n\r\n" + body)
            await until(lambda: any(relay.call and relay.call.paused for relay in tower.gateway.watch.relays))
            [client] = tower.gateway.server.connections
            before = client.transport.get_write_buffer_size()
            tower.gateway.watch.tick(clock() + settings.keepalive + 1, settings)
            assert client.transport.get_write_buffer_size() == before < 1_000_000
            tower.gateway.watch.tick(clock() + settings.idle_timeout + 1, settings)
            await until(lambda: admission.in_flight == 0)
            [record] = await tower.records(1)
            await engine.until(lambda e: e.disconnects)
            writer.close()
    assert (record.outcome, record.status) == ("cancelled", 499)


async def test_request_id_of_the_client_is_kept_end_to_end(tmp_path: Path) -> None:
    """A harmless x-request-id goes to the engine and back; a strange one is replaced."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine) as tower:
            body = {"model": "plan", "messages": [{"role": "user", "content": "x"}]}
            kept = await tower.client.post("/v1/chat/completions", json=body, headers={"x-request-id": "trace-7"})
            odd = await tower.client.post("/v1/chat/completions", json=body, headers={"x-request-id": "a b"})
        sent = [r.headers.get("x-request-id") for r in engine.requests if r.path.endswith("completions")]
    assert kept.headers["x-request-id"] == sent[0] == "trace-7"
    assert odd.headers["x-request-id"] == sent[1] != "a b"
