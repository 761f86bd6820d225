"""OpenAI responses as vLLM 0.32 writes them: the whole object, and the numbered events of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.fakes.answers import Answer, cut
from tests.fakes.shapes import Json, Piece, sse


def _items(answer: Answer) -> list[Json]:
    items: list[Json] = []
    if answer.reasoning:
        content = [{"type": "reasoning_text", "text": "".join(answer.reasoning)}]
        items.append({"id": "rs_1", "type": "reasoning", "summary": [], "content": content, "status": None})
    if answer.tokens:
        part: Json = {"type": "output_text", "text": "".join(answer.tokens), "annotations": [], "logprobs": None}
        items.append({"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]})
    for number, call in enumerate(answer.calls):
        names = {"name": call.name, "arguments": call.arguments, "call_id": call.id}
        items.append({"id": f"fc_{number}", "type": "function_call", "status": "completed"} | names)
    return items


def response(answer: Answer, *, status: str = "completed") -> Json:
    body = answer.request.json
    done = status == "completed"
    short = done and answer.finish == "length"
    return {
        "id": answer.id("resp_"),
        "object": "response",
        "created_at": answer.created,
        "model": answer.model,
        "status": "incomplete" if short else status,
        "incomplete_details": {"reason": "max_output_tokens"} if short else None,
        "instructions": body.get("instructions"),
        "output": _items(answer) if done else [],
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "temperature": body.get("temperature", 1.0),
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools", []),
        "top_p": body.get("top_p", 1.0),
        "usage": answer.counts.responses() if done and answer.script.usage else None,
    }


def _parts(answer: Answer, item: Json) -> tuple[str, Json | None, list[str]]:
    """The name of an item's delta event, its content part (if it has one) and the pieces of its text."""
    if item["type"] == "reasoning":
        return "reasoning_text", {"type": "reasoning_text", "text": ""}, answer.reasoning
    if item["type"] == "message":
        return "output_text", {"type": "output_text", "text": "", "annotations": [], "logprobs": []}, answer.tokens
    return "function_call_arguments", None, cut(item["arguments"], 3)


def stream(answer: Answer) -> Iterator[Piece]:
    number = -1

    def event(kind: str, tokens: int = 0, **rest: Any) -> Piece:
        nonlocal number
        number += 1
        return Piece(sse({"type": kind, "sequence_number": number} | rest, kind), tokens)

    begun = response(answer, status="in_progress")
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    for index, item in enumerate(_items(answer)):
        nothing: Json = {"arguments": ""} if item["type"] == "function_call" else {"content": []}
        empty = item | {"status": "in_progress"} | nothing
        yield event("response.output_item.added", output_index=index, item=empty)
        name, part, pieces = _parts(answer, item)
        where: Json = {"item_id": item["id"], "output_index": index}
        if part is not None:
            where["content_index"] = 0
            yield event("response.content_part.added", part=part, **where)
        for piece in pieces:
            yield event(f"response.{name}.delta", 1, delta=piece, **where)
        whole: Json = {"arguments" if part is None else "text": "".join(pieces)}
        yield event(f"response.{name}.done", **where, **whole)
        if part is not None:
            yield event("response.content_part.done", part=part | whole, **where)
        yield event("response.output_item.done", output_index=index, item=item)
    last = response(answer)
    yield event(f"response.{last['status']}", response=last)
