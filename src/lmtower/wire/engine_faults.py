"""What engines answer when they refuse or fail, turned into the faults that clients understand.

Clients act on overflow errors (compact, ask for less), so the numbers in an engine's sentence are read out of it; the
sentences are those of vLLM 0.10 to 0.32, llama.cpp and SGLang.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from lmtower.wire.faults import Fault, Overflow

_OVERFLOW = re.compile(
    r"maximum context length|context length is only|exceeds? (?:the )?(?:available )?context|context length \("
    r"|longer than the model's context|prompt is too long|max_model_len",
    re.IGNORECASE,
)
_LIMIT = re.compile(r"(?:context (?:length|size|window)|max_model_len)[^\d.]{0,12}(\d+)", re.IGNORECASE)
_CHARACTERS = re.compile(
    r"contains (\d+) characters \(more than (\d+) characters.{1,60}?for (\d+) input tokens", re.DOTALL
)
_INPUT = (
    re.compile(r"(\d+) (?:input tokens|tokens from the input|in the messages|in the prompt)", re.IGNORECASE),
    re.compile(r"(?:input length|the input|request) \((\d+)", re.IGNORECASE),
    re.compile(r"(?:requested|needs|contains|has)\D{0,12}(\d+)(?: tokens)?", re.IGNORECASE),
)
_OUTPUT = re.compile(
    r"(\d+) (?:in the completion|output tokens|tokens for the completion)|max_\w*tokens[^\d.]{0,40}?(\d+)",
    re.IGNORECASE,
)


class _EngineError(msgspec.Struct):
    message: str = ""
    type: str | None = None
    code: int | str | None = None
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class _EngineErrorBody(msgspec.Struct):
    error: _EngineError | str | None = None
    message: str | None = None
    detail: Any = None


_error_decoder = msgspec.json.Decoder(_EngineErrorBody)


_UNREADABLE = re.compile(rb"line \d+ column \d+ \(char \d+\)|AnthropicContentBlock|Failed to parse (?:input|tool)")


def unreadable_call(body: bytes) -> bool:
    """Whether an engine says that it could not read its own model's tool call.

    vLLM 0.32 decodes the arguments for an answer in Anthropic's form, and tells what goes wrong as a bad request.
    """
    return _UNREADABLE.search(body) is not None


def from_engine(number: int, body: bytes, secrets: tuple[str, ...] = ()) -> Fault:
    """Translate an engine's error answer (vLLM, llama.cpp or another) into a Fault that clients understand.

    ``secrets`` are persona prompts and keys: an engine's validation message may quote its input, and a
    message that does is replaced.
    """
    if number < 400:
        message = f"The engine answered with status {number}, which says nothing. Tell the owner of this tower."
        return Fault(502, "engine_refused", message, should_retry=False)
    message, tokens = _engine_message(body)
    if any(_quotes(message, secret) for secret in secrets):
        message = "The engine refused the request."
    if number in (401, 403):
        message = "The engine did not accept the tower's key. Tell the tower's owner."
        return Fault(502, "engine_refused", message, should_retry=False)
    if number == 404:
        message = "The engine does not serve this route or model. Tell the owner of this tower."
        return Fault(502, "engine_refused", message, should_retry=False)
    if unreadable_call(body):
        return Fault(502, "invalid_tool_call", "The model did not produce a valid tool call.")
    if number in (429, 503):
        return Fault(503, "engine_overloaded", "The engine is busy. Try again in a moment.", retry_after=2)
    if number >= 500:
        return Fault(502, "engine_error", "The engine failed while it worked on this request.")
    if _OVERFLOW.search(message):
        return Fault(400, "context_length_exceeded", message, param="messages", tokens=tokens)
    if number == 413:
        return Fault(413, "request_too_large", message or "The request is too large.")
    return Fault(400, "invalid_request", message or "The engine refused the request.")


def from_stream(body: bytes) -> Fault:
    """Translate an error that came inside a stream. Only an overflow is told in its words: others may quote."""
    try:
        error = _error_decoder.decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        error = None
    code = error.code if isinstance(error, _EngineError) else None
    fault = from_engine(code if isinstance(code, int) and 400 <= code < 600 else 502, body)
    return fault if fault.code == "context_length_exceeded" else from_engine(502, body)


def _engine_message(body: bytes) -> tuple[str, Overflow | None]:
    try:
        parsed = _error_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "", None
    error = parsed.error
    if isinstance(error, _EngineError):
        if error.n_prompt_tokens is not None and error.n_ctx is not None:
            return error.message, Overflow(error.n_prompt_tokens, error.n_ctx)
        message = error.message
    else:
        message = error or parsed.message or (parsed.detail if isinstance(parsed.detail, str) else "")
    return message, overflow(message)


def overflow(message: str) -> Overflow | None:
    """The numbers in an engine's sentence about a request that does not fit; None when it gives none."""
    limit = _LIMIT.search(message)
    if limit is None or _OVERFLOW.search(message) is None:
        return None
    allowed = int(limit[1])
    letters = _CHARACTERS.search(message)
    if letters is not None:
        return Overflow(-(-int(letters[1]) * int(letters[3]) // int(letters[2])), allowed)
    asked = next((int(match[1]) for pattern in _INPUT if (match := pattern.search(message))), 0)
    wanted = _OUTPUT.search(message)
    output = int(wanted[1] or wanted[2]) if wanted else 0
    if asked >= allowed or asked + output <= allowed:
        output = 0
    return Overflow(asked, allowed, output) if asked > 0 or output else None


def _quotes(message: str, secret: str) -> bool:
    """Whether a message repeats a piece of a secret that is long enough to matter (20 characters)."""
    if len(secret) < 20:
        return bool(secret) and secret in message
    return any(secret[start : start + 20] in message for start in range(0, len(secret) - 19, 10))
