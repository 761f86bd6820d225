"""Warm-up requests: one per shape class of an engine, so that no user pays for just-in-time compilation. Pure.

The classes are those that vLLM compiles or autotunes separately: a short prompt, a prompt longer than one scheduler
step, a grammar, an image, an embedding. llama.cpp compiles nothing and needs none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmtower.plan.types import EnginePlan

# A grey 32 × 32 PNG: the smallest picture that every vision encoder takes.
_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAAAAABWESUoAAAAGElEQVR42mNsYMAPmBhGFYwqGFUwQhUAAJe+"
    "AMD8WknZAAAAAElFTkSuQmCC"
)
_SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}


@dataclass(frozen=True, slots=True)
class WarmRequest:
    """One request that an engine gets before its first user. ``what`` is shown while it runs."""

    what: str
    path: str
    body: Mapping[str, Any]


def shape_requests(plan: EnginePlan) -> tuple[WarmRequest, ...]:
    """The shape classes that this engine will meet."""
    if plan.runtime != "vllm":
        return ()
    if plan.pooling:
        texts = ["warm-up", "warm-up " * 64]
        return (WarmRequest("embedding", "/v1/embeddings", {"model": plan.model, "input": texts}),)
    requests = [
        _completion(plan, "short prompt", "Hello", 8),
        _completion(plan, "long prompt", "word " * _long_words(plan), 2),
        _completion(plan, "grammar", "Say ok.", 8, structured_outputs={"json": _SCHEMA}),
    ]
    if plan.multimodal:
        content = [{"type": "image_url", "image_url": {"url": _PIXEL}}, {"type": "text", "text": "What is this?"}]
        body = {"model": plan.model, "max_tokens": 1, "messages": [{"role": "user", "content": content}]}
        requests.append(WarmRequest("image", "/v1/chat/completions", body))
    return tuple(requests)


def _long_words(plan: EnginePlan) -> int:
    """Enough for more than one scheduler step, if the context allows; a word here is one or two tokens."""
    step = plan.max_num_batched_tokens or 2048
    return max(16, min(step + step // 4, plan.max_model_len // 2 - 64))


def _completion(plan: EnginePlan, what: str, prompt: str, max_tokens: int, **extra: object) -> WarmRequest:
    body = {"model": plan.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, **extra}
    return WarmRequest(what, "/v1/completions", body)
