"""What the fake engine does with a request: a ``Script`` of behaviour, and what is known of a request that came in."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

DEFAULT_TEXT = "Hello from the fake engine."


def split_tokens(text: str) -> list[str]:
    """Word-like pieces that join to the same text: the fake engine's tokenizer."""
    return re.findall(r"\s*\S+|\s+$", text)


class Gate:
    """A door that a test opens when it likes. Requests wait at it inside the engine's loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._event = asyncio.Event()

    def open(self) -> None:
        self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self) -> None:
        await self._event.wait()


@dataclass(frozen=True)
class ToolCall:
    """A call that the model makes. ``arguments`` goes out as it is, so it may be broken JSON on purpose."""

    name: str
    arguments: str = "{}"
    id: str = "chatcmpl-tool-0123456789abcdef"
    pieces: int = 3


@dataclass
class Script:
    """Behaviour for the requests that match. Counts of tokens include reasoning tokens and tool-call pieces."""

    # the answer
    text: str | None = None
    tokens: Sequence[str] | None = None
    reasoning: str = ""
    tool_calls: Sequence[ToolCall] = ()
    finish_reason: str | None = None
    vector: Sequence[float] | None = None
    # usage; None: counted from the request
    input_tokens: int | None = None
    cached_tokens: int | None = None
    image_tokens: int | None = None
    reasoning_tokens: int | None = None
    usage: bool = True
    # time
    header_delay: float = 0.0
    first_delay: float = 0.0
    delay: float = 0.0
    gate: Gate | None = None
    gate_after: int = -1  # -1: before the status line; n: after n tokens
    stall_after: int | None = None  # silent for ever after n tokens
    # trouble
    die_after: int | None = None  # -1: before the status line; n: after n tokens
    die_how: Literal["rst", "close", "truncate"] = "rst"  # truncate: a well-formed end of the stream without [DONE]
    error_after: int | None = None  # an error event after n tokens, as vLLM sends it
    status: int = 200
    error: Any = None  # body of a refusal: a dict or a string is sent as JSON, bytes as they are
    # form
    headers: dict[str, str] = field(default_factory=dict)
    raw: Sequence[bytes] | None = None  # the pieces of the answer's body, as they are
    split: int | None = None  # cut the answer into pieces of so many bytes
    # which requests
    path: str | None = None  # without /v1, such as "/chat/completions"
    when: Callable[[Request], bool] | None = None
    times: int | None = None  # None: for ever

    @property
    def refuses(self) -> bool:
        return self.status != 200 or (self.error is not None and self.error_after is None)

    def matches(self, request: Request) -> bool:
        if self.times is not None and self.times <= 0:
            return False
        if self.path is not None and self.path.removeprefix("/v1") != request.route:
            return False
        return self.when is None or self.when(request)

    def answer(self, max_tokens: int | None) -> tuple[list[str], bool]:
        """The tokens of the text, and whether ``max_tokens`` cut them."""
        tokens = list(self.tokens) if self.tokens is not None else None
        if tokens is None:
            default = "" if self.tool_calls else DEFAULT_TEXT
            tokens = split_tokens(default if self.text is None else self.text)
        if max_tokens is not None and len(tokens) > max_tokens:
            return tokens[:max_tokens], True
        return tokens, False


@dataclass
class Request:
    """A request as it came in, and how far its answer went."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    raw: bytes
    time: float
    connection: int
    status: int = 0
    tokens_sent: int = 0
    finished: bool = False
    finished_at: float = 0.0

    @cached_property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def route(self) -> str:
        """The path without ``/v1``."""
        path = self.path.removeprefix("/v1")
        return path if path.startswith("/") else self.path

    def finish(self) -> None:
        self.finished, self.finished_at = True, time.monotonic()

    @property
    def stream(self) -> bool:
        return bool(self.json.get("stream"))


@dataclass(frozen=True)
class Disconnect:
    """A client that went away before its answer was complete. ``time`` is ``time.monotonic()``."""

    request: Request
    time: float
    tokens_sent: int
