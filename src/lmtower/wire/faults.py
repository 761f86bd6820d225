"""Errors as clients see them: one ``Fault``, rendered in the protocol that the client speaks.

Shapes: OpenAI ``{"error": {message, type, param, code}}`` with a *string* code (openai-openapi requires all
four); Anthropic ``{"type": "error", "error": {type, message}, "request_id"}`` with the types of
``anthropic/types/shared/error_type.py``. Clients match the wording of overflow errors, so each dialect has
its own sentence (facts: Claude Code compacts on ``prompt is too long: X tokens > Y maximum``).
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

Dialect = Literal["openai", "anthropic", "responses"]

_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class Fault(Exception):
    """One error for one client. ``code`` is a stable word; every code is listed in docs/errors.md."""

    __slots__ = ("code", "headers", "message", "param", "retry_after", "should_retry", "status", "tokens")

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        should_retry: bool | None = None,
        tokens: tuple[int, int] | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after
        """Whole seconds, at most 60: Claude Code gives up above, and takes no HTTP date."""
        self.should_retry = should_retry
        self.tokens = tokens
        """For context overflows: (tokens asked, largest allowed)."""
        self.headers = headers

    def header_lines(self) -> list[tuple[bytes, bytes]]:
        """The headers that tell an SDK whether and when to try again."""
        lines = list(self.headers)
        if self.retry_after is not None:
            seconds = max(1, min(60, self.retry_after))
            lines.append((b"retry-after", b"%d" % seconds))
            lines.append((b"retry-after-ms", b"%d" % (seconds * 1000)))
        if self.should_retry is not None:
            lines.append((b"x-should-retry", b"true" if self.should_retry else b"false"))
        return lines


def status(fault: Fault, dialect: Dialect) -> int:
    """The HTTP status: Anthropic has its own word for overload (529)."""
    return 529 if dialect == "anthropic" and fault.status == 503 else fault.status


def openai_error(fault: Fault) -> dict[str, Any]:
    """The inner error object of the OpenAI protocols."""
    kind = _OPENAI_TYPES.get(fault.status, "server_error" if fault.status >= 500 else "invalid_request_error")
    if fault.code == "insufficient_quota":
        kind = "insufficient_quota"
    return {"message": _openai_message(fault), "type": kind, "param": fault.param, "code": fault.code}


def _openai_message(fault: Fault) -> str:
    if fault.code == "context_length_exceeded" and fault.tokens is not None:
        asked, allowed = fault.tokens
        return (
            f"This model's maximum context length is {allowed} tokens. However, your request needs {asked} tokens. "
            "Please reduce the length of the messages or max_tokens."
        )
    return fault.message


def _anthropic_message(fault: Fault) -> str:
    if fault.code == "context_length_exceeded":
        if fault.tokens is None:
            return "prompt is too long: " + fault.message
        return f"prompt is too long: {fault.tokens[0]} tokens > {fault.tokens[1]} maximum"
    return fault.message


def render(fault: Fault, dialect: Dialect, request_id: str) -> bytes:
    """The error as a response body."""
    if dialect == "anthropic":
        return msgspec.json.encode(_anthropic(fault, request_id))
    return msgspec.json.encode({"error": openai_error(fault)})


def _anthropic(fault: Fault, request_id: str) -> dict[str, Any]:
    number = status(fault, "anthropic")
    kind = _ANTHROPIC_TYPES.get(number, "api_error" if number >= 500 else "invalid_request_error")
    return {
        "type": "error",
        "error": {"type": kind, "message": _anthropic_message(fault)},
        "request_id": request_id,
    }


def event(fault: Fault, dialect: Dialect, request_id: str) -> bytes:
    """The error as an event in the middle of a stream."""
    if dialect == "anthropic":
        return b"event: error\ndata: " + msgspec.json.encode(_anthropic(fault, request_id)) + b"\n\n"
    if dialect == "responses":
        failed = {"type": "response.failed", "sequence_number": 0, "response": failed_response(fault, request_id)}
        return b"event: response.failed\ndata: " + msgspec.json.encode(failed) + b"\n\n"
    return b"data: " + msgspec.json.encode({"error": openai_error(fault)}) + b"\n\n"


_RESPONSE_CODES = {
    "context_length_exceeded": "context_length_exceeded",
    "insufficient_quota": "insufficient_quota",
    "rate_limit_exceeded": "rate_limit_exceeded",
    "queue_full": "rate_limit_exceeded",
    "engine_overloaded": "server_is_overloaded",
}


def failed_response(fault: Fault, request_id: str) -> dict[str, Any]:
    """The response object of ``response.failed``, with the codes that Codex knows."""
    fallback = "server_error" if fault.status >= 500 else "invalid_prompt"
    return {
        "id": f"resp_{request_id}",
        "object": "response",
        "created_at": 0,
        "status": "failed",
        "error": {"code": _RESPONSE_CODES.get(fault.code, fallback), "message": _openai_message(fault)},
        "incomplete_details": None,
        "model": "",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": None,
    }


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
_OVERFLOW = re.compile(
    r"maximum context length|context length is only|exceeds? (?:the )?(?:available )?context"
    r"|prompt is too long|max_model_len",
    re.IGNORECASE,
)
_OVERFLOW_LIMIT = re.compile(r"(?:maximum context length is|context length is only|context size \(?)\D{0,3}(\d+)", re.I)
_OVERFLOW_ASKED = re.compile(
    r"(?:requested|request has|request contains|contains|resulting in|prompt contains|need[s]?)\D{0,24}?(\d+)", re.I
)


def from_engine(number: int, body: bytes, secrets: tuple[str, ...] = ()) -> Fault:
    """Translate an engine's error answer (vLLM, llama.cpp or another) into a Fault that clients understand.

    ``secrets`` are persona prompts and keys: an engine's validation message may quote its input, and a
    message that does is replaced.
    """
    message, tokens = _engine_message(body)
    if any(_quotes(message, secret) for secret in secrets):
        message = "The engine refused the request."
    if number in (401, 403):
        return Fault(502, "engine_refused", "The engine did not accept the tower's key. Tell the tower's owner.")
    if number == 404:
        return Fault(
            502, "engine_refused", "The engine does not serve this route or model. Tell the owner of this tower."
        )
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


def _engine_message(body: bytes) -> tuple[str, tuple[int, int] | None]:
    try:
        parsed = _error_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "", None
    error = parsed.error
    if isinstance(error, _EngineError):
        if error.n_prompt_tokens is not None and error.n_ctx is not None:
            return error.message, (error.n_prompt_tokens, error.n_ctx)
        message = error.message
    else:
        message = error or parsed.message or (parsed.detail if isinstance(parsed.detail, str) else "")
    limit, asked = _OVERFLOW_LIMIT.search(message), _OVERFLOW_ASKED.search(message)
    tokens = (int(asked[1]), int(limit[1])) if limit and asked and int(asked[1]) > 0 else None
    return message, tokens


def _quotes(message: str, secret: str) -> bool:
    """Whether a message repeats a piece of a secret that is long enough to matter (20 characters)."""
    if len(secret) < 20:
        return bool(secret) and secret in message
    return any(secret[start : start + 20] in message for start in range(0, len(secret) - 19, 10))
