"""Errors as clients see them: one ``Fault``, rendered in the protocol that the client speaks.

Shapes: OpenAI ``{"error": {message, type, param, code}}`` with a *string* code (openai-openapi requires all
four); Anthropic ``{"type": "error", "error": {type, message}, "request_id"}`` with the types of
``anthropic/types/shared/error_type.py``. Clients match the wording of overflow errors, so each dialect has
its own sentence (facts: Claude Code compacts on ``prompt is too long: X tokens > Y maximum``).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

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


class Overflow(NamedTuple):
    """Why a request does not fit: ``asked`` tokens of input (0: not known), ``output`` asked beside them."""

    asked: int
    allowed: int
    output: int = 0


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
        tokens: Overflow | None = None,
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
        """For context overflows."""
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
    if fault.code != "context_length_exceeded" or fault.tokens is None:
        return fault.message
    asked, allowed, output = fault.tokens
    needs = (
        f"{asked + output} tokens ({asked} in the messages, {output} in the completion)"
        if output
        else f"{asked} tokens"
    )
    return (
        f"This model's maximum context length is {allowed} tokens. However, your request needs {needs}. "
        "Please reduce the length of the messages or max_tokens."
    )


def _anthropic_message(fault: Fault) -> str:
    """Claude Code compacts on the first sentence, and asks for fewer tokens on the second."""
    if fault.code != "context_length_exceeded":
        return fault.message
    if fault.tokens is None:
        return "prompt is too long: " + fault.message
    asked, allowed, output = fault.tokens
    if output:
        return (
            f"input length and `max_tokens` exceed context limit: {asked} + {output} > {allowed}, "
            "decrease input length or `max_tokens` and try again"
        )
    return f"prompt is too long: {asked} tokens > {allowed} maximum"


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
