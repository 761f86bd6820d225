"""Fuzz over real sockets: every route, every kind of JSON and of bytes, wrong types at every field that is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmtower.gateway.routes import ROUTES
from tests.fakes.engine import FakeEngine
from tests.gateway.support import Running, running
from tests.gateway.test_fuzz import BODY

PERSONAS: dict[str, Any] = {
    "p": {"engine": "big", "tools": "strict", "system": "Prompt of the house.", "fim": "qwen2.5-coder", "context": 500},
    "q": {"engine": "big", "images": {"max_side": 8, "max_count": 2}, "canonical_tools": True, "prefix": "search: "},
}
MODEL_ROUTES = sorted(path for path, route in ROUTES.items() if route.kind == "model")
USER = [{"role": "user", "content": "x"}]
TOOL = {"type": "function", "name": "t", "function": {"name": "t", "parameters": {}}, "input_schema": {}}
GOOD: dict[str, Any] = {
    "model": "p",
    "messages": USER,
    "input": "x",
    "prompt": "x",
    "suffix": "y",
    "input_prefix": "x",
    "input_suffix": "y",
    "query": "x",
    "documents": ["x"],
    "tools": [TOOL],
    "max_tokens": 3,
}
TOOLS = """tools tool_choice parallel_tool_calls thinking reasoning_effort chat_template_kwargs max_tokens temperature
    user prompt_cache_key metadata"""
COMPLETION = "prompt suffix stop n stream_options max_tokens"
FIELDS: dict[str, str] = {
    "/chat/completions": f"messages stop n stream_options max_completion_tokens response_format modalities {TOOLS}",
    "/completions": COMPLETION,
    "/fim/completions": f"{COMPLETION} random_seed min_tokens",
    "/infill": "input_prefix input_suffix input_extra prompt n_predict response_fields stop",
    "/messages": f"messages system stop_sequences output_config context_management {TOOLS}",
    "/messages/count_tokens": "messages system stop_sequences tools thinking",
    "/responses": f"input instructions previous_response_id store background include text reasoning truncation {TOOLS}",
    "/embeddings": "input encoding_format dimensions",
    "/rerank": "query documents top_n return_documents",
    "/v2/rerank": "query documents top_n max_tokens_per_doc",
}
"""Every model route without its twin under /v1, and the fields that it knows."""
VALUES: tuple[str, ...] = (
    *(
        "null",
        "true",
        "false",
        "0",
        "-1",
        "1e400",
        "-1e400",
        "NaN",
        "Infinity",
        "9" * 400,
        "0.1",
        '""',
        '"x"',
        "[]",
        "{}",
    ),
    *("[null]", "[[]]", "[{}]", "[1]", '[""]', '{"a":1}', '{"type":5}', '[{"type":[]}]', '"\\ud800"', '"\\u0000"'),
    *('{"type":"function","function":{"name":7}}', '{"a":{"b":' * 60 + "1" + "}}" * 60, "[" * 900 + "]" * 900),
    *('[{"role":"user","content":[{"type":"image_url","image_url":5}]}]', '[{"role":5,"content":{}}]'),
    *('[{"role":"assistant","tool_calls":[{"id":5,"function":{"name":[],"arguments":{}}}]}]', '[{"type":"namespace"}]'),
    *('[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}}]}]',),
    *('[{"role":"user","content":[{"type":"image","source":{"type":"base64","data":7}}]}]', '[{"name":"t"}, 5]'),
)


def with_field(name: str, value: str) -> bytes:
    """A good body with this JSON text at one field."""
    parts = [f"{json.dumps(key)}:{json.dumps(given)}" for key, given in GOOD.items() if key != name]
    return ("{" + ",".join([*parts, f'"{name}":{value}']) + "}").encode("utf-8", "surrogatepass")


def odd_bodies() -> Iterator[bytes]:
    """Bodies that are no object, no JSON or no UTF-8, and objects that say a thing twice."""
    good = json.dumps(GOOD)
    yield from (
        b"",
        b" ",
        b"null",
        b"5",
        b'"x"',
        b"[]",
        b"[{}]",
        b"{",
        b"}",
        b'{"model"',
        b'{"model":}',
        b"{,}",
        b"\x00",
    )
    yield b"\xef\xbb\xbf" + good.encode()
    yield from (good.encode(coding) for coding in ("utf-16", "utf-16-le", "utf-32"))
    yield good.replace('"x"', '"\xff"').encode("latin-1")
    yield good.replace('"x"', '"\ud800"').encode("utf-8", "surrogatepass")
    yield from (good.encode() + tail for tail in (b"x", b"{}", b",", b"\x00"))
    yield good[:-1].encode() + b',"model":"q","messages":5,"prompt":[],"input":{},"model":7}'
    yield good[:-1].encode() + b',"model":"p","model":"q"}'
    yield from (b"[" * 100_000, b'{"a":' * 50_000, b'{"messages":' + b"[" * 50_000)
    yield b'{"' + b"a" * 100_000 + b'":1}'
    yield b"--x\r\ncontent-disposition: form-data; name=file\r\n\r\nx\r\n--x--\r\n"
    yield b"model=p&messages=x"


async def check(tower: Running, path: str, content: bytes) -> None:
    """Never a 5xx; an error in the envelope of the route, with a request id."""
    answer = await _answer(tower, path, content)
    assert answer.status_code < 500, (path, content[:300], answer.text[:300])
    assert answer.headers["x-request-id"]
    assert "house" not in answer.text
    if answer.status_code < 400:
        return
    told = answer.json()
    message = told["error"]["message"]
    assert isinstance(message, str)
    assert message
    if "/messages" in path:
        assert (told["type"], told["request_id"]) == ("error", answer.headers["x-request-id"])
        assert isinstance(told["error"]["type"], str)
    else:
        assert set(told["error"]) == {"message", "type", "param", "code"}
        assert isinstance(told["error"]["code"], str)


async def _answer(tower: Running, path: str, content: bytes) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return await tower.client.post(path, content=content, headers=headers)


def test_every_model_route_is_fuzzed() -> None:
    """A new route gets its line above."""
    assert {path.removeprefix("/v1") for path in MODEL_ROUTES} == set(FIELDS)


@pytest.mark.parametrize("path", FIELDS)
async def test_wrong_value_at_any_known_field_is_no_5xx(tmp_path: Path, path: str) -> None:
    """Every field of every protocol, with every kind of JSON that does not belong there."""
    with FakeEngine() as engine:
        engine.script(text='{"a": 1}')
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            for name in f"model stream {FIELDS[path]}".split():
                for value in VALUES:
                    await check(tower, path, with_field(name, value))


@pytest.mark.parametrize("path", FIELDS)
async def test_bytes_that_are_no_request_are_a_4xx_of_the_protocol(tmp_path: Path, path: str) -> None:
    """Broken JSON, other encodings, a BOM, what is said twice, a form: refused or understood, never a 5xx."""
    with FakeEngine() as engine:
        engine.script(text="x")
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            for content in odd_bodies():
                await check(tower, path, content)


@pytest.mark.parametrize(
    "path", ["/v1/responses/resp_1", "/v1/files", "/v1/vector_stores", "/v1/models", "/nowhere", "/v1"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT", "PATCH", "TRACE", "BREW"])
async def test_other_routes_answer_any_method_in_an_envelope(tmp_path: Path, path: str, method: str) -> None:
    """404, 405, 501 and 503 (no store service here) have an envelope, too."""
    with FakeEngine() as engine:
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            for content in (b"", b"{", b'{"a": NaN}'):
                answer = await tower.client.request(method, path, content=content)
                assert answer.status_code in (200, 400, 404, 405, 501, 503), answer.text
                if answer.status_code >= 400:
                    assert answer.json()["error"]["message"]


async def test_hypothesis_finds_no_body_that_breaks_a_route(tmp_path: Path) -> None:
    """Bodies that are nearly right, made by hypothesis, on all model routes."""
    with FakeEngine() as engine:
        engine.script(text="x")
        async with running(tmp_path, engine, personas=PERSONAS) as tower:
            bodies: list[tuple[str, bytes]] = []

            @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
            @given(
                path=st.sampled_from(MODEL_ROUTES), body=BODY, model=st.sampled_from(["p", "q"]), whole=st.booleans()
            )
            def collect(path: str, body: dict[str, Any], model: str, whole: bool) -> None:
                content = {**(GOOD if whole else {}), **body, "model": model}
                bodies.append((path, json.dumps(content).encode()))

            collect()
            for path, content in bodies:
                await check(tower, path, content)
