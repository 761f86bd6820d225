"""Faults: their shapes in each dialect, the translation of engines' errors, and that every code is documented."""

# ruff: noqa: E501 - real messages of engines are long

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lmtower.wire import faults
from lmtower.wire.engine_faults import from_engine
from lmtower.wire.faults import Fault, Overflow

ROOT = Path(__file__).parents[2]
_CODE = re.compile(r"Fault\(\s*(\d+),\s*\"([a-z_]+)\"")


def test_every_code_is_documented_with_its_status() -> None:
    """docs/errors.md has exactly the codes that the source raises, each with its status."""
    raised: dict[str, set[str]] = {}
    for source in (ROOT / "src").rglob("*.py"):
        for status, code in _CODE.findall(source.read_text("utf-8")):
            raised.setdefault(code, set()).add(status)
    rows = re.findall(r"^\| `([a-z_]+)` \| ([\d, ]+) \|", (ROOT / "docs/errors.md").read_text("utf-8"), re.MULTILINE)
    documented = {code: set(statuses.replace(" ", "").split(",")) for code, statuses in rows}
    assert set(documented) >= set(raised)
    for code, statuses in raised.items():
        assert documented[code] >= statuses, code


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (429, "rate_limit_error"),
        (502, "server_error"),
    ],
)
def test_openai_shape(status: int, kind: str) -> None:
    """All four fields, a string code, the type that the status stands for."""
    body = json.loads(faults.render(Fault(status, "some_code", "words", param="p"), "openai", "req_1"))
    assert body == {"error": {"message": "words", "type": kind, "param": "p", "code": "some_code"}}


@pytest.mark.parametrize(
    ("status", "seen", "kind"),
    [
        (400, 400, "invalid_request_error"),
        (401, 401, "authentication_error"),
        (404, 404, "not_found_error"),
        (413, 413, "request_too_large"),
        (429, 429, "rate_limit_error"),
        (503, 529, "overloaded_error"),
        (502, 502, "api_error"),
    ],
)
def test_anthropic_shape(status: int, seen: int, kind: str) -> None:
    """Anthropic's envelope, types and its own status for overload."""
    fault = Fault(status, "some_code", "words")
    body = json.loads(faults.render(fault, "anthropic", "req_1"))
    assert faults.status(fault, "anthropic") == seen
    assert body == {"type": "error", "error": {"type": kind, "message": "words"}, "request_id": "req_1"}


def test_overflow_is_worded_for_each_client() -> None:
    """Claude Code compacts on its own sentence, OpenAI clients on theirs."""
    fault = Fault(400, "context_length_exceeded", "engine's words", tokens=Overflow(300, 100))
    assert "prompt is too long: 300 tokens > 100 maximum" in faults.render(fault, "anthropic", "r").decode()
    assert "maximum context length is 100 tokens" in faults.render(fault, "openai", "r").decode()


@pytest.mark.parametrize(
    ("status", "body", "code", "tokens"),
    [
        (
            400,
            {
                "error": {
                    "message": "This model's maximum context length is 10 tokens. However, your request has 25 input tokens.",
                    "type": "BadRequestError",
                    "code": 400,
                }
            },
            "context_length_exceeded",
            Overflow(25, 10),
        ),
        (
            400,
            {
                "error": {
                    "code": 400,
                    "message": "request exceeds the available context size",
                    "type": "exceed_context_size_error",
                    "n_prompt_tokens": 900,
                    "n_ctx": 512,
                }
            },
            "context_length_exceeded",
            Overflow(900, 512),
        ),
        (400, {"error": {"message": "temperature must be non-negative", "code": 400}}, "invalid_request", None),
        (422, {"detail": [{"loc": ["body"], "msg": "bad"}]}, "invalid_request", None),
        (401, {"error": "Unauthorized"}, "engine_refused", None),
        (404, {"error": {"message": "The model `x` does not exist."}}, "engine_refused", None),
        (503, {}, "engine_overloaded", None),
        (500, {"error": {"message": "CUDA out of memory at /home/secret"}}, "engine_error", None),
    ],
)
def test_engine_errors_become_faults(status: int, body: object, code: str, tokens: object) -> None:
    """Real answers of vLLM and llama.cpp, each as the fault that a client can act on; a 500's words stay inside."""
    fault = from_engine(status, json.dumps(body).encode())
    assert (fault.code, fault.tokens) == (code, tokens)
    assert "secret" not in fault.message


def test_prompt_in_an_engine_error_is_withheld() -> None:
    """A message that quotes twenty characters of a persona's prompt is replaced, whole."""
    prompt = "You are the careful planner of a large estate."
    body = json.dumps({"error": {"message": f"bad value: {prompt[3:30]}", "code": 400}}).encode()
    assert from_engine(400, body, (prompt,)).message == "The engine refused the request."


def test_retry_headers_are_whole_seconds_up_to_60() -> None:
    """What SDKs and Claude Code understand."""
    lines = dict(Fault(429, "c", "m", retry_after=500, should_retry=False).header_lines())
    assert lines == {b"retry-after": b"60", b"retry-after-ms": b"60000", b"x-should-retry": b"false"}


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (
            "This model's maximum context length is 1024 tokens. However, your prompt contains at least 1025 input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt.",
            Overflow(1025, 1024),
        ),
        (
            "This model's maximum context length is 1024 tokens. However, your prompt contains 50000 characters (more than 20480 characters, which is the upper bound for 1024 input tokens). Please reduce the length of the input prompt.",
            Overflow(2500, 1024),
        ),
        (
            "max_tokens=32000 cannot be greater than max_model_len=8192. Please request fewer output tokens.",
            Overflow(0, 8192, 32000),
        ),
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 8000. This model's maximum context length is 8192 tokens and your request has 500 input tokens (8000 > 8192 - 500).",
            Overflow(500, 8192, 8000),
        ),
        (
            "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4000 in the messages, 1000 in the completion). Please reduce the length of the messages or completion.",
            Overflow(4000, 4096, 1000),
        ),
        (
            "This model's maximum context length is 4096 tokens. However, you requested 6000 tokens (5000 in the messages, 1000 in the completion).",
            Overflow(5000, 4096),
        ),
        (
            "You passed 1025 input tokens and requested 0 output tokens. However, the model's context length is only 1024 tokens, resulting in a maximum input length of 1024 tokens.",
            Overflow(1025, 1024),
        ),
        ("Input length (1030) exceeds model's maximum context length (1024).", Overflow(1030, 1024)),
        (
            "Requested token count exceeds the model's maximum context length of 4096 tokens. You requested a total of 5000 tokens: 4000 tokens from the input messages and 1000 tokens for the completion.",
            Overflow(4000, 4096, 1000),
        ),
        ("The input (5000 tokens) is longer than the model's context length (4096 tokens).", Overflow(5000, 4096)),
        (
            "request (5000 tokens) exceeds the available context size (1024 tokens), try increasing it",
            Overflow(5000, 1024),
        ),
    ],
)
def test_numbers_are_read_out_of_every_engines_overflow_sentence(sentence: str, expected: Overflow) -> None:
    """The input, the limit, and the output where the input alone would fit."""
    fault = from_engine(400, json.dumps({"error": {"message": sentence, "code": 400}}).encode())
    assert (fault.code, fault.tokens) == ("context_length_exceeded", expected)


def test_too_many_output_tokens_are_told_so_that_claude_code_asks_for_fewer() -> None:
    """It computes the next max_tokens from the three numbers."""
    fault = Fault(400, "context_length_exceeded", "engine's words", tokens=Overflow(500, 8192, 8000))
    told = json.loads(faults.render(fault, "anthropic", "r"))["error"]["message"]
    assert told.startswith("input length and `max_tokens` exceed context limit: 500 + 8000 > 8192")
    openai = json.loads(faults.render(fault, "openai", "r"))["error"]["message"]
    assert "8500 tokens (500 in the messages, 8000 in the completion)" in openai
