"""What most gateways get wrong, by number: one test (or a few) for every entry of the clients' list of complaints."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from lmtower.config.types import Gateway, Lanes
from lmtower.personas import rules
from tests.fakes.engine import FakeEngine, Request, ToolCall
from tests.gateway.support import events, running, until, upstream

PROMPT = "You are the house's own persona and you never say so."
PERSONAS: dict[str, Any] = {
    "plan": {"engine": "big", "system": PROMPT, "thinking": "on"},
    "eyes": {"engine": "big", "thinking": "off", "images": {"max_count": 16, "max_side": 64}, "context": 16000},
    "claude-local": {"engine": "big", "system": PROMPT, "aliases": ["claude-*", "*haiku*"]},
    "qwen-coder": {"engine": "big", "fim": "qwen2.5-coder", "lane": "interactive", "system": PROMPT, "thinking": "on"},
    "embed": {"engine": "big", "prefix": "search_query: "},
}
USER = [{"role": "user", "content": "hello"}]


def sent(engine: FakeEngine) -> list[Request]:
    """The POSTs that the engine saw."""
    return [request for request in engine.requests if request.method == "POST"]


def data_url(width: int, height: int) -> str:
    out = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(out, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


async def test_gotcha_01_persona_prompt_is_merged_into_the_first_system_text(tmp_path: Path) -> None:
    """Never a second system message; instructions for responses; before the client's system for messages."""
    billing = {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=abc;"}
    own = {"type": "text", "text": "You are Claude Code.", "cache_control": {"type": "ephemeral"}}
    with FakeEngine() as engine:
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            await tower.chat("plan", messages=[{"role": "system", "content": "Be short."}, *USER])
            message = {"model": "claude-x", "max_tokens": 9, "messages": USER, "system": [billing, own]}
            await tower.client.post("/v1/messages?beta=true", json=message)
            await tower.client.post("/v1/messages", json=message | {"system": "Be short."})
            items = [{"role": "developer", "content": "Rules."}, *USER]
            response = {"model": "plan", "instructions": "Be short.", "input": items}
            told = await tower.client.post("/v1/responses", json=response)
        chat, blocks, text, answer = (request.json for request in sent(engine))
    assert [message["role"] for message in chat["messages"]] == ["system", "user"]
    assert chat["messages"][0]["content"] == f"{PROMPT}\n\nBe short."
    assert blocks["system"] == [{"type": "text", "text": PROMPT + "\n\n"}, own]
    assert text["system"] == f"{PROMPT}\n\nBe short."
    assert answer["instructions"] == f"{PROMPT}\n\nBe short.\n\nRules."
    assert answer["input"] == USER
    assert PROMPT not in told.text


@pytest.mark.parametrize("stream", [False, True])
async def test_gotcha_02_reasoning_comes_under_both_names_and_is_accepted_in(tmp_path: Path, stream: bool) -> None:
    """Cline reads reasoning_content, Codex and others reasoning."""
    history = [*USER, {"role": "assistant", "content": "hi", "reasoning_content": "hm"}, *USER]
    with FakeEngine() as engine:
        engine.script(text="yes", reasoning="because")
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            answer = await tower.chat("plan", messages=history, stream=stream)
        assert sent(engine)[0].json["messages"][-2]["reasoning_content"] == "hm"
    places = (
        [choice["delta"] for chunk in events(answer.text) for choice in chunk["choices"]]
        if stream
        else [answer.json()["choices"][0]["message"]]
    )
    found = [place for place in places if place.get("reasoning")]
    assert found
    assert all(place["reasoning"] == place["reasoning_content"] for place in found)


async def test_gotcha_03_usage_chunk_only_when_asked_alone_and_always_metered(tmp_path: Path) -> None:
    """choices: [], after finish_reason, before [DONE]; an aborted stream is metered too."""
    with FakeEngine() as engine:
        engine.script(text="a b c", input_tokens=7)
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            without = await tower.chat("plan", stream=True)
            asked = await tower.chat("plan", stream=True, stream_options={"include_usage": True})
            records = await tower.records(2)
            engine.script(text="a b c d", stall_after=3)
            content = {"model": "plan", "messages": USER, "stream": True}
            async with tower.client.stream("POST", "/v1/chat/completions", json=content) as answer:
                async for piece in answer.aiter_text():
                    if '" c"' in piece:
                        break
            aborted = (await tower.records(3))[-1]
    assert all(chunk["choices"] and not chunk.get("usage") for chunk in events(without.text))
    *_, finish, usage = events(asked.text)
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert (usage["choices"], usage["usage"]["prompt_tokens"]) == ([], 7)
    assert asked.text.endswith("data: [DONE]\n\n")
    assert [record.input_tokens for record in records] == [7, 7]
    assert aborted.outcome == "cancelled"
    assert aborted.output_tokens >= 3


@pytest.mark.parametrize("case", ["key", "route", "json", "model", "too large", "overflow", "field"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_gotcha_04_errors_have_the_protocols_envelope(tmp_path: Path, path: str, case: str) -> None:
    """Also those that no route made: 401, 404, 413; overflow in the words that each client's recovery knows."""
    overflow = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"
    with FakeEngine() as engine:
        async with running(tmp_path, engine, personas=PERSONAS, gateway={"max_body": 20000}) as tower:
            content: dict[str, Any] = {"model": "plan", "messages": USER, "input": "x", "max_tokens": 9}
            headers = {}
            if case == "key":
                headers = {"authorization": "Bearer wrong"}
            elif case == "model":
                content["model"] = "nope"
            elif case == "too large":
                content["messages"] = content["input"] = "x" * 30000
            elif case == "overflow":
                engine.script(status=400, error={"error": {"message": overflow, "type": "Bad", "code": 400}})
            elif case == "field":
                content["messages"] = content["input"] = 5
            target = path + "/nothing/here" if case == "route" else path
            raw = b"{broken" if case == "json" else json.dumps(content).encode()
            answer = await tower.client.post(target, content=raw, headers=headers)
    expected = {"key": 401, "route": 404, "model": 404, "too large": 413}.get(case, 400)
    assert (answer.status_code, answer.headers["content-type"]) == (expected, "application/json")
    assert "x-request-id" in answer.headers
    error = answer.json()["error"]
    if path == "/v1/messages":
        assert answer.json()["type"] == "error"
        kinds = {"key": "authentication_error", "route": "not_found_error", "model": "not_found_error"}
        assert error["type"] == kinds.get(case, "request_too_large" if case == "too large" else "invalid_request_error")
        if case == "overflow":
            assert error["message"] == "prompt is too long: 5000 tokens > 4096 maximum"
    else:
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["code"], str)
        if case == "overflow":
            assert error["code"] == "context_length_exceeded"
            assert "maximum context length is 4096 tokens" in error["message"]


@pytest.mark.parametrize(
    ("path", "ping"),
    [("/v1/chat/completions", ": keepalive"), ("/v1/messages", "event: ping"), ("/v1/responses", ": keepalive")],
)
async def test_gotcha_05_silence_is_filled_and_headers_wait_for_admission(tmp_path: Path, path: str, ping: str) -> None:
    """A comment for OpenAI, a ping event for Anthropic; no buffering, no compression; a refusal keeps its status."""
    content = {"model": "plan", "messages": USER, "input": "x", "max_tokens": 50, "stream": True}
    with FakeEngine() as engine:
        engine.script(text="late", first_delay=0.5)
        async with running(tmp_path, engine, personas=PERSONAS, gateway={"keepalive": 0.1}) as tower:
            answer = await tower.client.post(path, json=content, headers={"accept-encoding": "gzip"})
            engine.script(status=400, error={"error": {"message": "no", "type": "BadRequestError", "code": 400}})
            refused = await tower.client.post(path, json=content)
    assert ping in answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    assert "no-cache" in answer.headers["cache-control"]
    assert "content-encoding" not in answer.headers
    assert refused.status_code == 400


@pytest.mark.parametrize(
    ("path", "stream"),
    [
        ("/v1/chat/completions", True),
        ("/v1/completions", False),
        ("/v1/messages", True),
        ("/v1/responses", False),
        ("/v1/fim/completions", True),
        ("/infill", False),
        ("/v1/embeddings", False),
    ],
)
async def test_gotcha_06_disconnect_cancels_the_engine_at_once(tmp_path: Path, path: str, stream: bool) -> None:
    """On every endpoint, streamed or not."""
    model = "qwen-coder" if "fim" in path or "infill" in path else "plan"
    content = {"model": model, "messages": USER, "input": "x", "prompt": "x", "max_tokens": 50, "stream": stream}
    with FakeEngine() as engine:
        gate = engine.gate()
        engine.script(text="a b", gate=gate, gate_after=-1)
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            task = asyncio.create_task(tower.client.post(path, json=content))
            await engine.until(lambda e: sent(e), timeout=5)
            task.cancel()
            await engine.until(lambda e: e.disconnects, timeout=2)
            [record] = await tower.records(1)
    assert record.outcome == "cancelled"


async def test_gotcha_07_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    """Integer Retry-After of at most 60, retry-after-ms beside it; short bursts wait instead."""
    with FakeEngine() as engine:
        gate = engine.gate()
        engine.script(text="a", gate=gate, gate_after=-1)

        table = [upstream(engine, slots=1, lanes=Lanes(queue=1))]
        async with running(tmp_path, engine, personas=PERSONAS, upstreams=table) as tower:
            first = [asyncio.create_task(tower.chat("plan")) for _ in range(2)]
            await engine.until(lambda e: len(sent(e)) == 1, timeout=5)
            admission = tower.gateway.snapshot.engines["big"].admission
            await until(lambda: admission.queued()["default"] == 1)
            refused = await tower.chat("plan")
            anthropic = await tower.client.post(
                "/v1/messages", json={"model": "plan", "max_tokens": 5, "messages": USER}
            )
            gate.open()
            answers = await asyncio.gather(*first)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert refused.status_code == anthropic.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert int(refused.headers["retry-after-ms"]) > 0
    assert anthropic.json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_gotcha_08_more_than_four_stop_strings_work(tmp_path: Path, path: str, stream: bool) -> None:
    """The engine gets four, the gateway enforces all of them, over the cuts of the stream."""
    stops = [f"never{number}" for number in range(11)] + ["STOP"]
    content = {"model": "plan", "messages": USER, "prompt": "x", "stop": stops, "stream": stream}
    with FakeEngine() as engine:
        engine.script(tokens=["one ", "tw", "o S", "TO", "P three", " four"])
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            answer = await tower.client.post(path, json=content)
        assert sent(engine)[0].json["stop"] == stops[:4]
    chunks = events(answer.text) if stream else [answer.json()]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    texts = [c.get("text") or (c.get("delta") or c.get("message") or {}).get("content") or "" for c in choices]
    assert "".join(texts) == "one two "
    assert choices[-1]["finish_reason"] == "stop"
    assert not stream or answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
async def test_gotcha_08_more_than_four_stop_sequences_work_in_messages(tmp_path: Path, stream: bool) -> None:
    """The block is closed, the reason and the sequence are named, thinking is left alone, the call is given up."""
    stops = [f"never{number}" for number in range(11)] + ["STOP"]
    content = {"model": "plan", "messages": USER, "stop_sequences": stops, "stream": stream, "max_tokens": 50}
    with FakeEngine() as engine:
        engine.script(tokens=["one ", "tw", "o S", "TO", "P three", " four"], reasoning="when to STOP", input_tokens=7)
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            answer = await tower.client.post("/v1/messages", json=content)
            [record] = await tower.records(1)
        assert sent(engine)[0].json["stop_sequences"] == stops[:4]
    if stream:
        found = events(answer.text)
        texts = [event["delta"].get("text", "") for event in found if event["type"] == "content_block_delta"]
        thought = [event["delta"].get("thinking", "") for event in found if event["type"] == "content_block_delta"]
        assert [event["type"] for event in found[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
        ends = found[-2]["delta"]
    else:
        blocks = answer.json()["content"]
        texts, thought = [blocks[-1]["text"]], [blocks[0]["thinking"]]
        ends = answer.json()
    assert ("".join(texts), "".join(thought)) == ("one two ", "when to STOP")
    assert (ends["stop_reason"], ends["stop_sequence"]) == ("stop_sequence", "STOP")
    assert (record.outcome, record.input_tokens) == ("ok", 7)
    assert 5 <= record.output_tokens <= 9


async def test_gotcha_08_text_that_only_begins_like_a_stop_sequence_is_not_lost(tmp_path: Path) -> None:
    """What was held back comes before the end of its block; the end is the engine's own."""
    content = {"model": "plan", "messages": USER, "stop_sequences": [*"12345", "STOP"], "stream": True}
    with FakeEngine() as engine:
        engine.script(tokens=["one ", "tw", "o S", "TO"])
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            answer = await tower.client.post("/v1/messages", json=content | {"max_tokens": 9})
    found = events(answer.text)
    texts = [event["delta"]["text"] for event in found if event["type"] == "content_block_delta"]
    assert "".join(texts) == "one two STO"
    assert found[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


async def test_gotcha_09_fill_in_the_middle_is_rendered_here(tmp_path: Path) -> None:
    """suffix, /v1/fim/completions and /infill become one marked-up prompt without persona text or thinking."""
    extra = [{"filename": "lib.py", "text": "def f(): ...\n"}]
    with FakeEngine() as engine:
        engine.script(text="a + b", cached_tokens=3)
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            common = {"model": "qwen-coder", "prompt": "def add(a, b):\n    return ", "suffix": "\n\nprint(add(1, 2))"}
            completion = await tower.client.post("/v1/completions", json=common)
            mistral = await tower.client.post("/v1/fim/completions", json=common)
            streamed = await tower.client.post("/v1/fim/completions", json=common | {"stream": True})
            fill = {"input_prefix": "def add(a, b):\n", "prompt": "    return ", "input_suffix": "\n", "n_predict": 16}
            infill = await tower.client.post("/infill", json=fill | {"input_extra": extra})
            fields = ["content", "timings/prompt_n", "tokens_cached"]
            flat = await tower.client.post("/infill", json=fill | {"response_fields": fields})
            warm = await tower.client.post("/infill", json=fill | {"n_predict": 0})
            whole = "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>"
            await tower.client.post("/v1/completions", json={"model": "qwen-coder", "prompt": whole})
        bodies = [request.json for request in sent(engine)]
    marked = "<|fim_prefix|>def add(a, b):\n    return <|fim_suffix|>\n\nprint(add(1, 2))<|fim_middle|>"
    assert [body["prompt"] for body in bodies[:3]] == [marked] * 3
    assert bodies[3]["prompt"].startswith("<|repo_name|>repository\n<|file_sep|>lib.py\ndef f(): ...\n<|file_sep|>")
    assert bodies[-1]["prompt"] == whole
    assert all(request.path == "/v1/completions" for request in sent(engine))
    assert all("suffix" not in body and "chat_template_kwargs" not in body for body in bodies)
    assert PROMPT not in json.dumps(bodies)
    assert all(body["max_tokens"] <= 128 for body in bodies[:5])
    assert completion.json()["choices"][0]["text"] == "a + b"
    assert mistral.json()["choices"][0]["message"]["content"] == "a + b"
    pieces = [choice["delta"]["content"] for chunk in events(streamed.text) for choice in chunk["choices"]]
    assert "".join(pieces) == "a + b"
    assert infill.json()["content"] == "a + b"
    assert set(flat.json()) == set(fields)
    assert flat.json()["tokens_cached"] == 3
    assert warm.json() == {}


async def test_gotcha_10_embeddings_keep_format_order_and_meaning(tmp_path: Path) -> None:
    """base64 only when asked, token arrays become their text, big batches are split and rejoined in order."""
    with FakeEngine() as engine:
        engine.script(vector=[0.5, -1.0, 2.0])
        async with running(tmp_path, engine, personas=PERSONAS) as tower:

            async def embed(**fields: Any) -> httpx.Response:
                return await tower.client.post("/v1/embeddings", json={"model": "embed", **fields})

            floats = await embed(input="hi")
            packed = await embed(input="hi", encoding_format="base64")
            await embed(input=[[9906, 11, 1917, 0]])
            many = await embed(input=[f"text {number}" for number in range(600)])
            short = await embed(input="hi", dimensions=2)
            wrong = await embed(input=[[200_000]])
        bodies = [request.json for request in sent(engine)]
    assert floats.json()["data"][0]["embedding"] == [0.5, -1.0, 2.0]
    assert base64.b64decode(packed.json()["data"][0]["embedding"]) == struct.pack("<3f", 0.5, -1.0, 2.0)
    assert bodies[0]["input"] == ["search_query: hi"]
    assert bodies[2]["input"] == ["search_query: Hello, world!"]
    assert [row["index"] for row in many.json()["data"]] == list(range(600))
    assert [len(body["input"]) for body in bodies[3:6]] == [256, 256, 88]
    assert (short.status_code, short.json()["error"]["param"]) == (400, "dimensions")
    assert wrong.status_code == 400


async def test_gotcha_11_names_lead_by_pattern_and_come_back_as_asked(tmp_path: Path) -> None:
    """claude-* leads to a persona; the reply, streamed or not, says the name that was asked for."""
    with FakeEngine("served-model") as engine:
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            content = {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": USER}
            whole = await tower.client.post("/v1/messages", json=content)
            streamed = await tower.client.post("/v1/messages", json=content | {"stream": True})
            small = await tower.client.post("/v1/messages", json=content | {"model": "x-haiku-9"})
            [*_, record] = await tower.records(3)
    assert whole.json()["model"] == events(streamed.text)[0]["message"]["model"] == "claude-sonnet-4-5"
    assert small.json()["model"] == "x-haiku-9"
    assert "served-model" not in whole.text + streamed.text
    assert (record.persona, record.engine) == ("claude-local", "big")


async def test_gotcha_12_models_satisfy_every_reader(tmp_path: Path) -> None:
    """OpenAI, vLLM, Anthropic and Codex fields; the file's order; filtered by key; no redirect."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            answer = await tower.client.get("/v1/models?limit=1000&client_version=0.9")
            one = await tower.client.get("/v1/models/eyes")
    told = answer.json()
    assert [entry["id"] for entry in told["data"]] == list(PERSONAS)
    eyes = next(entry for entry in told["data"] if entry["id"] == "eyes")
    assert eyes["max_model_len"] == eyes["context_window"] == 16000
    assert {"object", "created", "created_at", "owned_by", "display_name", "description", "type"} <= set(eyes)
    needed = {"slug", "display_name", "supported_reasoning_levels", "shell_type", "visibility", "supported_in_api"}
    assert needed | {"priority", "base_instructions", "truncation_policy"} <= set(told["models"][0])
    assert (answer.status_code, one.json()["id"]) == (200, "eyes")


async def test_gotcha_13_any_key_header_is_accepted_and_none_is_401(tmp_path: Path) -> None:
    """Authorization, x-api-key, api-key, x-litellm-api-key; an empty bearer is no key."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            for name in ("authorization", "x-api-key", "api-key", "x-litellm-api-key"):
                value = f"Bearer {tower.key}" if name == "authorization" else tower.key
                headers = {"authorization": "Bearer dummy", name: value}
                assert (await tower.client.get("/v1/models", headers=headers)).status_code == 200
            empty = await tower.client.get("/v1/models", headers={"authorization": "Bearer"})
    assert empty.status_code == 401


async def test_gotcha_14_unknown_fields_pass_and_dangerous_ones_do_not(tmp_path: Path) -> None:
    """Engine extras are dropped unless the tower file allows them; URLs to fetch from are refused."""
    extras = {
        "chat_template": "{{ x }}",
        "kv_transfer_params": {},
        "vllm_xargs": {},
        "priority": -9,
        "request_id": "x",
        "cache_salt": "x",
        "allowed_local_media_path": "/",
    }
    urls = ["http://10.0.0.1/a.jpg", "https://example.org/a.jpg", "file:///etc/passwd", "http://[::1]/"]
    with FakeEngine() as engine:
        settings = {"dangerous_fields": ["cache_salt"]}
        async with running(tmp_path, engine, personas=PERSONAS, gateway=settings) as tower:
            await tower.chat("plan", top_k=5, made_up_field=1, **extras)
            refused = []
            for url in urls:
                content = [{"type": "image_url", "image_url": {"url": url}}]
                refused.append(await tower.chat("eyes", messages=[{"role": "user", "content": content}]))
            source = {"type": "image", "source": {"type": "url", "url": urls[0]}}
            anthropic = {"model": "eyes", "max_tokens": 5, "messages": [{"role": "user", "content": [source]}]}
            refused.append(await tower.client.post("/v1/messages", json=anthropic))
            escaped = '{"model":"eyes","messages":[{"role":"user","content":[{"\\u0069mage_url":{"url":"http://10.0.0.1"}}]}]}'
            refused.append(await tower.client.post("/v1/chat/completions", content=escaped))
        [request] = sent(engine)
    assert request.json["top_k"] == 5
    assert request.json["made_up_field"] == 1
    assert extras.keys() & request.json.keys() == {"cache_salt"}
    assert [answer.status_code for answer in refused] == [400] * 6


async def test_gotcha_15_paths_as_clients_really_write_them(tmp_path: Path) -> None:
    """Query strings, trailing slashes, /v1/v1, HEAD and OPTIONS; nothing is ever redirected."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine, personas=PERSONAS, gateway={"cors": ["*"]}) as tower:
            for path in ("/v1/chat/completions/", "/v1/v1/chat/completions", "/chat/completions?api-version=1"):
                answer = await tower.client.post(path, json={"model": "plan", "messages": USER})
                assert answer.status_code == 200, path
            azure = "/openai/deployments/plan/chat/completions?api-version=2024"
            assert (await tower.client.post(azure, json={"messages": USER})).status_code == 200
            assert (await tower.client.head("/")).status_code == 200
            assert (await tower.client.head("/api/hello")).status_code == 200
            asked = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
            assert (await tower.client.options("/v1/chat/completions", headers=asked)).status_code in (200, 204)


async def test_gotcha_16_large_bodies_pass_and_too_large_ones_are_413(tmp_path: Path) -> None:
    """Dozens of camera frames are one request; a body over the limit is answered in the protocol."""
    frames = [{"type": "image_url", "image_url": {"url": data_url(640, 480), "detail": "low"}} for _ in range(16)]
    with FakeEngine() as engine:
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            answer = await tower.chat("eyes", messages=[{"role": "user", "content": frames}])
            many = await tower.chat("eyes", messages=[{"role": "user", "content": [*frames, *frames]}])
            big = await tower.client.post("/v1/messages", content=b"x" * (65 * 1024 * 1024))
            [record, *_] = await tower.records(1)
        content = sent(engine)[0].json["messages"][-1]["content"]
    assert answer.status_code == 200
    for part in content:
        raw = base64.b64decode(part["image_url"]["url"].partition(",")[2])
        assert max(Image.open(io.BytesIO(raw)).size) == 64
    assert (many.status_code, many.json()["error"]["code"]) == (400, "too_many_images")
    assert (big.status_code, big.json()["error"]["type"]) == (413, "request_too_large")
    assert record.images == 16


async def test_gotcha_17_long_silent_answers_outlive_proxies_timeouts(tmp_path: Path) -> None:
    """The defaults wait longer than any client does: 600 s and more."""
    settings = Gateway()
    assert settings.first_token_timeout >= 600
    assert settings.idle_timeout >= 600


@pytest.mark.parametrize("stream", [False, True])
async def test_gotcha_18_tool_calls_are_whole_and_apart_from_the_finish(tmp_path: Path, stream: bool) -> None:
    """content null beside calls, ids kept, index always, and no chunk with both a call and finish_reason."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "fake-model"}
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    both = {**chunk, "choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}
    with FakeEngine() as engine:
        if stream:
            engine.script(raw=[b"data: " + json.dumps(both).encode() + b"\n\n", b"data: [DONE]\n\n"])
        else:
            engine.script(tool_calls=[ToolCall("weather", "{}", id="call_1")])
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            for choice in (None, "none", "auto", {"type": "function", "function": {"name": "weather"}}):
                answer = await tower.chat("plan", tools=[tool], tool_choice=choice, stream=stream)
                assert answer.status_code == 200
        assert sent(engine)[-1].json["tool_choice"]["function"]["name"] == "weather"
    if stream:
        first, last = events(answer.text)
        assert first["choices"][0]["finish_reason"] is None
        assert first["choices"][0]["delta"]["tool_calls"][0]["id"] == "call_1"
        assert (last["choices"][0]["finish_reason"], last["choices"][0]["delta"]) == ("tool_calls", {})
    else:
        message = answer.json()["choices"][0]["message"]
        assert message["content"] is None
        assert message["tool_calls"][0]["id"] == "call_1"


async def test_gotcha_19_prompts_stay_byte_stable(tmp_path: Path) -> None:
    """Nothing that changes is put into a prompt, and what clients put there is taken out."""

    def message(number: int) -> dict[str, Any]:
        header = {"type": "text", "text": f"x-anthropic-billing-header: cc_version=1; cch={number};"}
        return {
            "model": "claude-x",
            "max_tokens": 9,
            "messages": USER,
            "system": [header, {"type": "text", "text": "A"}],
        }

    with FakeEngine() as engine:
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            for number in range(2):
                await tower.client.post("/v1/messages", json=message(number))
                await tower.chat("plan")
        raws = [request.raw for request in sent(engine)]
    assert raws[0] == raws[2]
    assert raws[1] == raws[3]


async def test_gotcha_20_retries_are_marked_and_request_ids_go_end_to_end(tmp_path: Path) -> None:
    """x-stainless-retry-count marks a repeated request; x-request-id is on every answer and reaches the engine."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            for number in range(2):
                headers = {"x-stainless-retry-count": str(number), "x-request-id": f"mine-{number}"}
                answer = await tower.client.post(
                    "/v1/chat/completions", json={"model": "plan", "messages": USER}, headers=headers
                )
                assert answer.headers["x-request-id"] == f"mine-{number}"
            records = await tower.records(2)
        assert [request.headers["x-request-id"] for request in sent(engine)] == ["mine-0", "mine-1"]
    assert [record.retry for record in records] == [False, True]


async def test_gotcha_05_real_chunks_come_for_clients_that_do_not_count_comments(tmp_path: Path) -> None:
    """LangChain's clock only sees parsed chunks; one that says nothing comes every other time."""
    with FakeEngine() as engine:
        engine.script(text="late", first_delay=0.6)
        async with running(tmp_path, engine, personas=PERSONAS, gateway={"keepalive": 0.1}) as tower:
            chat = await tower.chat("plan", stream=True)
            prompt = {"model": "plan", "prompt": "x", "stream": True}
            completion = await tower.client.post("/v1/completions", json=prompt)
    empty = events(chat.text)[0]
    assert empty["choices"] == [{"index": 0, "delta": {}, "finish_reason": None}]
    assert (empty["model"], empty["object"]) == ("plan", "chat.completion.chunk")
    assert events(completion.text)[0]["choices"][0]["text"] == ""
    texts = [choice["delta"].get("content") or "" for chunk in events(chat.text) for choice in chunk["choices"]]
    assert "".join(texts) == "late"


async def test_gotcha_12_models_are_the_keys_own_and_aliases_are_known(tmp_path: Path) -> None:
    """A key sees what it may use, in the file's order, each time the same; an alias is told under the asked name."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            key = tower.gateway.ledger.create_key("narrow", personas=["eyes", "claude-local"]).secret
            headers = {"authorization": f"Bearer {key}"}
            first = await tower.client.get("/v1/models", headers=headers)
            again = await tower.client.get("/v1/models", headers=headers)
            alias = await tower.client.get("/v1/models/claude-sonnet-5", headers=headers)
            foreign = await tower.client.get("/v1/models/plan", headers=headers)
            nobody = await tower.client.get("/v1/models/gpt-9", headers=headers)
            props = await tower.client.get("/props")
    assert [entry["id"] for entry in first.json()["data"]] == ["eyes", "claude-local"]
    assert [entry["slug"] for entry in first.json()["models"]] == ["eyes", "claude-local"]
    assert first.content == again.content
    assert (alias.status_code, alias.json()["id"]) == (200, "claude-sonnet-5")
    assert (foreign.status_code, nobody.status_code) == (404, 404)
    assert props.json()["model_alias"] == "qwen-coder"


@pytest.mark.parametrize("path", ["chat/completions", "completions", "messages", "responses", "embeddings", "rerank"])
async def test_gotcha_14_nothing_dangerous_passes_on_any_protocol(tmp_path: Path, path: str) -> None:
    """Neither what reaches past the request, nor what makes vLLM say the persona's prompt or cut it off."""
    dangerous = rules.DANGEROUS if path in ("embeddings", "rerank") else rules.DANGEROUS_TO_PROMPTS
    body = {"model": "plan", "messages": USER, "prompt": "x", "input": "x", "query": "x", "documents": ["x"]}
    escaped = json.dumps(body | {"max_tokens": 9} | dict.fromkeys(dangerous - {"documents"}, 1))
    escaped = escaped.replace('"cache_salt"', '"cache\\u005fsalt"')
    with FakeEngine() as engine:
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            answer = await tower.client.post(f"/v1/{path}", content=escaped)
        [request] = sent(engine)
    assert answer.status_code == 200, answer.text
    assert not (dangerous - {"documents"}) & request.json.keys()
    named = "kv_transfer_params vllm_xargs priority cache_salt request_id allowed_local_media_path mm_processor_kwargs"
    assert set(named.split()) <= dangerous
    revealing = {"chat_template", "prompt_logprobs", "return_token_ids", "enable_response_messages"}
    assert revealing <= rules.DANGEROUS_TO_PROMPTS


@pytest.mark.parametrize("path", ["chat/completions", "messages", "responses", "completions"])
async def test_gotcha_04_more_output_than_context_is_lowered_instead_of_refused(tmp_path: Path, path: str) -> None:
    """Claude Code asks for 32000 tokens of any model it does not know; vLLM refuses more than its context."""
    name = "max_output_tokens" if path == "responses" else "max_tokens"
    body = {"model": "eyes", "messages": USER, "input": "x", "prompt": "x", name: 32000}
    with FakeEngine() as engine:
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            assert (await tower.client.post(f"/v1/{path}", json=body)).status_code == 200
            assert (await tower.client.post(f"/v1/{path}", json=body | {name: 300})).status_code == 200
        assert [request.json[name] for request in sent(engine)] == [16000, 300]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/audio/transcriptions", 501),
        ("POST", "/v1/images/generations", 501),
        ("POST", "/v1/responses/compact", 501),
        ("POST", "/v1/alpha/search", 501),
        ("POST", "/v1/messages/batches", 501),
        ("POST", "/tokenize", 501),
        *[("POST", f"/{name}", 404) for name in ("sleep", "wake_up", "pause", "collective_rpc", "reset_prefix_cache")],
        *[("POST", f"/{name}", 404) for name in ("v1/load_lora_adapter", "lora-adapters", "slots", "invocations")],
        *[("GET", path, 404) for path in ("/metrics", "//metrics", "/%6Detrics", "/v1/../metrics", "/METRICS")],
        *[("GET", path, 404) for path in ("/server_info", "/v1/models/../../metrics", "/load", "/v1/%2e%2e/load")],
    ],
)
async def test_gotcha_14_engine_routes_are_not_reachable(tmp_path: Path, method: str, path: str, status: int) -> None:
    """By no spelling; what a protocol has and no engine here does is told as that."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            reader, writer = await asyncio.open_connection("127.0.0.1", tower.port)
            head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {tower.key}\r\nconnection: close\r\n"
            writer.write((head + "content-length: 2\r\n\r\n{}").encode())
            answer = (await reader.read()).decode()
            writer.close()
        assert not [request for request in engine.requests if request.path not in ("/health", "/v1/models")]
    head, _, body = answer.partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ")
    assert json.loads(body)["error"]["message"]
    if status == 501:
        assert "x-should-retry: false" in head
