"""What the model says to one request, written down as vLLM 0.32 does it (and llama.cpp for ``/infill``)."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from tests.fakes.script import Request, Script, ToolCall, split_tokens
from tests.fakes.shapes import Counts, Json, Piece, sse


def cut(text: str, pieces: int) -> list[str]:
    size = max(1, -(-len(text) // pieces))
    return [text[start : start + size] for start in range(0, len(text), size)]


class Answer:
    """What the model says to one request, however it is then written down."""

    def __init__(self, script: Script, request: Request) -> None:
        body = request.json
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or body.get("max_output_tokens")
        self.script, self.request = script, request
        self.model: str = body.get("model") or "fake-model"
        self.created, self._random = int(time.time()), uuid.uuid4().hex
        self.tokens, short = script.answer(limit)
        self.reasoning = split_tokens(script.reasoning)
        self.calls: Sequence[ToolCall] = script.tool_calls
        self.finish = script.finish_reason or ("length" if short else "tool_calls" if self.calls else "stop")
        self.total = len(self.tokens) + len(self.reasoning) + sum(len(cut(c.arguments, c.pieces)) for c in self.calls)
        self.counts = Counts.of(script, request, self.total)

    def id(self, prefix: str) -> str:
        return f"{prefix}{self.request.headers.get('x-request-id') or self._random}"

    # --- chat completions ---

    def chat(self) -> Json:
        calls = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in self.calls
        ]
        message: Json = {
            "role": "assistant",
            "content": "".join(self.tokens) or None,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "tool_calls": calls,
            "reasoning": "".join(self.reasoning) or None,
        }
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": self.finish,
            "stop_reason": None,
            "token_ids": None,
        }
        return self._envelope(self.id("chatcmpl-"), "chat.completion") | {
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": None,
            "usage": self.counts.openai() if self.script.usage else None,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "kv_transfer_params": None,
        }

    def chat_stream(self) -> Iterator[Piece]:
        head = self._envelope(self.id("chatcmpl-"), "chat.completion.chunk")
        sent = 0

        def chunk(delta: Json, tokens: int = 0, finish: str | None = None) -> Piece:
            nonlocal sent
            sent += tokens
            choice: Json = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            choice |= {"stop_reason": None} if finish else {"token_ids": None}
            return Piece(sse(head | {"choices": [choice]} | self._continuous(sent)), tokens)

        yield chunk({"role": "assistant", "content": ""})
        for token in self.reasoning:
            yield chunk({"reasoning": token}, 1)
        for token in self.tokens:
            yield chunk({"content": token}, 1)
        for index, call in enumerate(self.calls):
            yield chunk(
                {"tool_calls": [{"id": call.id, "type": "function", "index": index, "function": {"name": call.name}}]}
            )
            for part in cut(call.arguments, call.pieces):
                yield chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]}, 1)
        yield chunk({"content": ""}, 0, self.finish)
        yield from self._openai_end(head)

    # --- completions ---

    def completion(self) -> Json:
        choice = {
            "index": 0,
            "text": "".join(self.tokens),
            "logprobs": None,
            "finish_reason": self.finish,
            "stop_reason": None,
        }
        return self._envelope(self.id("cmpl-"), "text_completion") | {
            "choices": [choice],
            "usage": self.counts.openai() if self.script.usage else None,
        }

    def completion_stream(self) -> Iterator[Piece]:
        head = self._envelope(self.id("cmpl-"), "text_completion")
        last = len(self.tokens) - 1
        for number, token in enumerate(self.tokens):
            choice = {"index": 0, "text": token, "logprobs": None, "finish_reason": None, "stop_reason": None}
            choice["finish_reason"] = self.finish if number == last else None
            yield Piece(sse(head | {"choices": [choice]} | self._continuous(number + 1)), 1)
        yield from self._openai_end(head)

    def _envelope(self, id: str, kind: str) -> Json:
        return {"id": id, "object": kind, "created": self.created, "model": self.model}

    def _options(self) -> Json:
        return self.request.json.get("stream_options") or {}

    def _continuous(self, sent: int) -> Json:
        if not self._options().get("continuous_usage_stats"):
            return {}
        return {"usage": Counts.of(self.script, self.request, sent).openai()}

    def _openai_end(self, head: Json) -> Iterator[Piece]:
        if self._options().get("include_usage") and self.script.usage:
            yield Piece(sse(head | {"choices": [], "usage": self.counts.openai()}))
        yield Piece(b"data: [DONE]\n\n")

    # --- Anthropic messages ---

    @property
    def stop_reason(self) -> str:
        return {"length": "max_tokens", "tool_calls": "tool_use"}.get(self.finish, "end_turn")

    def message(self) -> Json:
        content: list[Json] = []
        if self.reasoning:
            content.append({"type": "thinking", "thinking": "".join(self.reasoning), "signature": "f" * 32})
        if self.tokens:
            content.append({"type": "text", "text": "".join(self.tokens)})
        content += [
            {"type": "tool_use", "id": c.id, "name": c.name, "input": json.loads(c.arguments)} for c in self.calls
        ]
        return self._message_head() | {"content": content}

    def _message_head(self) -> Json:
        return {
            "id": self.id("chatcmpl-"),
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self.model,
            "stop_reason": self.stop_reason,
            "stop_sequence": None,
            "usage": self.counts.anthropic(),
        }

    def message_stream(self) -> Iterator[Piece]:
        def event(kind: str, tokens: int = 0, **rest: Any) -> Piece:
            return Piece(sse({"type": kind} | rest, kind), tokens)

        usage = Counts.of(self.script, self.request, 0).anthropic()
        yield event("message_start", message=self._message_head() | {"stop_reason": None, "usage": usage})
        blocks: list[tuple[Json, str, str, list[str]]] = []
        if self.reasoning:
            blocks.append(({"type": "thinking", "thinking": ""}, "thinking_delta", "thinking", self.reasoning))
        if self.tokens:
            blocks.append(({"type": "text", "text": ""}, "text_delta", "text", self.tokens))
        for call in self.calls:
            start = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            blocks.append((start, "input_json_delta", "partial_json", cut(call.arguments, call.pieces)))
        for index, (start, kind, key, parts) in enumerate(blocks):
            yield event("content_block_start", index=index, content_block=start)
            for part in parts:
                yield event("content_block_delta", 1, index=index, delta={"type": kind, key: part})
            if kind == "thinking_delta":
                yield event(
                    "content_block_delta", index=index, delta={"type": "signature_delta", "signature": "f" * 32}
                )
            yield event("content_block_stop", index=index)
        yield event(
            "message_delta",
            delta={"stop_reason": self.stop_reason, "stop_sequence": None},
            usage=self.counts.anthropic(),
        )
        yield event("message_stop")

    # --- llama.cpp infill ---

    def infill(self) -> Json:
        timings = {
            "prompt_n": self.counts.input_tokens,
            "predicted_n": len(self.tokens),
            "prompt_ms": 1.0,
            "predicted_ms": 1.0,
        }
        cached = self.script.cached_tokens or 0
        return {
            "content": "".join(self.tokens),
            "tokens_cached": cached,
            "truncated": False,
            "stop": True,
            "timings": timings,
        }
