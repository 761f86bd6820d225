"""The try-it box: one request to a persona, its answer as JSON lines with what it cost.

Lines: ``{"text"}`` and ``{"thinking"}`` as they come, ``{"ttft"}`` once, then ``{"done"}`` with tokens and time, or
``{"error"}``. A browser that goes away closes the upstream request with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass, field

import httpx

from lmtower.config.types import Persona
from lmtower.console.settings import Json
from lmtower.console.tower import message_of

_LONGEST_SECONDS = 1200.0


def kind_of(name: str, persona: Persona, pooling: Collection[str] = ()) -> str:
    """What a persona is for: ``autocomplete``, ``embedding``, ``rerank`` or ``chat``; ``pooling`` names engines."""
    if persona.fim is not None:
        return "autocomplete"
    if "rerank" in name:
        return "rerank"
    return "embedding" if persona.prefix is not None or "embed" in name or persona.engine in pooling else "chat"


def request_of(
    kind: str, name: str, prompt: str, *, suffix: str = "", max_tokens: int | None = None
) -> tuple[str, Json]:
    """Path and body of a trial."""
    if kind == "embedding":
        return "/v1/embeddings", {"model": name, "input": prompt}
    shared: Json = {"model": name, "stream": True, "stream_options": {"include_usage": True}}
    if max_tokens:
        shared["max_tokens"] = max_tokens
    if kind == "autocomplete":
        return "/v1/completions", {**shared, "prompt": prompt, "suffix": suffix}
    return "/v1/chat/completions", {**shared, "messages": [{"role": "user", "content": prompt}]}


@dataclass(slots=True)
class Progress:
    """What is known of one answer so far."""

    started_at: float
    first_at: float | None = None
    usage: Json = field(default_factory=dict)

    def event(self, data: str, now: float) -> Iterator[Json]:
        """The lines that one SSE event makes."""
        if data == "[DONE]":
            return
        chunk = json.loads(data)
        if "error" in chunk:
            yield {"error": message_of(502, data)}
            return
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            thinking = delta.get("reasoning_content") or delta.get("reasoning")
            text = delta.get("content") or choice.get("text")
            if (thinking or text) and self.first_at is None:
                self.first_at = now
                yield {"ttft": now - self.started_at}
            if thinking:
                yield {"thinking": thinking}
            if text:
                yield {"text": text}

    def summary(self, now: float) -> Json:
        """Tokens and times of the whole answer."""
        usage = self.usage
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        output = usage.get("completion_tokens") or 0
        decode = now - (self.first_at or now)
        return {
            "done": {
                "input_tokens": usage.get("prompt_tokens") or 0,
                "cached_tokens": cached,
                "output_tokens": output,
                "ttft": None if self.first_at is None else self.first_at - self.started_at,
                "seconds": now - self.started_at,
                "tokens_per_second": (output - 1) / decode if output > 1 and decode > 0 else None,
            }
        }


async def ask(web: httpx.AsyncClient, url: str, key: str, path: str, body: Json) -> AsyncIterator[Json]:
    """Send a trial to the gateway; yields the lines. A refused key is ``{"status": 401}``."""
    progress = Progress(time.monotonic())
    headers = {"authorization": f"Bearer {key}"}
    try:
        async with web.stream("POST", f"{url}{path}", json=body, headers=headers, timeout=_LONGEST_SECONDS) as reply:
            if not reply.is_success:
                text = (await reply.aread()).decode("utf-8", "replace")
                yield {"status": reply.status_code, "error": message_of(reply.status_code, text)}
                return
            if not body.get("stream"):
                yield vector(json.loads(await reply.aread()), time.monotonic() - progress.started_at)
                return
            async for line in reply.aiter_lines():
                if line.startswith("data:"):
                    for made in progress.event(line[5:].strip(), time.monotonic()):
                        yield made
        yield progress.summary(time.monotonic())
    except (httpx.HTTPError, ValueError) as exc:
        yield {"error": f"The answer broke off: {exc or type(exc).__name__}."}


def vector(answer: Json, seconds: float) -> Json:
    """An embedding in words: how long, how it begins."""
    values = answer["data"][0]["embedding"]
    start = ", ".join(f"{value:.3f}" for value in values[:8])
    usage = answer.get("usage") or {}
    return {
        "text": f"{len(values)} numbers: [{start}, …]",
        "done": {
            "input_tokens": usage.get("prompt_tokens") or 0,
            "cached_tokens": 0,
            "output_tokens": 0,
            "ttft": None,
            "seconds": seconds,
            "tokens_per_second": None,
        },
    }
