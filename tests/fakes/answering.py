"""How the fake engine answers: routes, refusals, and the walk through an answer as the script says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tests.fakes import responses, shapes
from tests.fakes.answers import Answer
from tests.fakes.script import Request, Script
from tests.fakes.shapes import Piece

if TYPE_CHECKING:
    from tests.fakes.connection import Connection
    from tests.fakes.engine import FakeEngine

STREAMS: dict[str, Callable[[Answer], Iterator[Piece]]] = {
    "/chat/completions": Answer.chat_stream,
    "/completions": Answer.completion_stream,
    "/messages": Answer.message_stream,
    "/responses": responses.stream,
}
WHOLE: dict[str, Callable[[Answer], Any]] = {
    "/chat/completions": Answer.chat,
    "/completions": Answer.completion,
    "/messages": Answer.message,
    "/responses": responses.response,
    "/infill": Answer.infill,
}
POOLING: dict[str, Callable[[Script, Request], Any]] = {
    "/embeddings": shapes.embeddings,
    "/rerank": shapes.rerank,
    "/v2/rerank": shapes.rerank,
    "/messages/count_tokens": lambda script, request: {"input_tokens": shapes.count_tokens(request.json)},
    "/tokenize": shapes.tokenize,
}


async def answer(connection: Connection, request: Request) -> None:
    engine = connection.engine
    if request.method in ("GET", "HEAD"):
        await connection.send(request, *_look(engine, request))
    elif engine.api_key and request.headers.get("authorization") != f"Bearer {engine.api_key}":
        # vLLM's API-key middleware: the error is a string.
        await connection.send(request, 401, {"error": "Unauthorized"})
    elif request.route not in WHOLE and request.route not in POOLING:
        await connection.send(request, 404, {"detail": "Not Found"})
    elif refusal := _refusal(engine, request):
        await connection.send(request, *refusal)
    else:
        script = engine.choose(request)
        async with _slot(engine):
            await _generate(connection, request, script)


def _look(engine: FakeEngine, request: Request) -> tuple[int, Any]:
    if request.route in ("/health", "/ping"):
        return 200 if engine.healthy else 503, b""
    if request.route == "/models":
        return 200, shapes.models(engine.models, engine.max_model_len)
    if request.route == "/metrics":
        return 200, engine.metrics().encode()
    if request.route == "/version":
        return 200, {"version": "0.32.0"}
    if request.route == "/props":
        return 200, {"default_generation_settings": {"n_ctx": engine.max_model_len}, "total_slots": 1}
    return 404, {"detail": "Not Found"}


def _refusal(engine: FakeEngine, request: Request) -> tuple[int, Any] | None:
    try:
        named = request.json.get("model")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        text = "[{'type': 'json_invalid', 'loc': ('body', 0), 'msg': 'JSON decode error', 'input': {}}]"
        return 400, shapes.error(text, "Bad Request")
    if named is not None and named not in engine.models and not engine.any_model:
        return 404, shapes.error(f"The model `{named}` does not exist.", "NotFoundError", 404, "model")
    for field in ("stop", "stop_sequences"):  # VLLM_MAX_STOP_STRINGS
        if isinstance(request.json.get(field), list) and len(request.json[field]) > 4:
            return 400, shapes.error(f"{field}: List should have at most 4 items after validation.", param=field)
    return None


@asynccontextmanager
async def _slot(engine: FakeEngine) -> AsyncIterator[None]:
    """One of the engine's sequences, waiting for it if all run."""
    engine.count(waiting=1)
    try:
        await engine.slots.acquire()
    finally:
        engine.count(waiting=-1)
    engine.count(running=1)
    try:
        yield
    finally:
        engine.slots.release()
        engine.count(running=-1)


async def _generate(connection: Connection, request: Request, script: Script) -> None:
    if script.header_delay:
        await asyncio.sleep(script.header_delay)
    if script.gate and script.gate_after < 0:
        await script.gate.wait()
    if script.die_after is not None and script.die_after < 0:
        connection.die(script)
    if script.refuses:
        default = shapes.error("scripted", "InternalServerError", script.status)
        await connection.send(request, script.status, default if script.error is None else script.error, script)
    elif request.route in POOLING:
        await connection.send(request, 200, POOLING[request.route](script, request), script)
    else:
        await _complete(connection, request, script)


async def _complete(connection: Connection, request: Request, script: Script) -> None:
    said = Answer(script, request)
    connection.engine.spent(
        request, input_tokens=said.counts.input_tokens, cached_tokens=said.counts.cached_tokens or 0
    )
    if request.stream and request.route in STREAMS:
        pieces = STREAMS[request.route](said) if script.raw is None else (Piece(data, 1) for data in script.raw)
        await _stream(connection, request, script, pieces)
        return
    await asyncio.sleep(script.first_delay + script.delay * said.total)
    await _pause(script, said.total)
    try:
        body = b"".join(script.raw) if script.raw is not None else WHOLE[request.route](said)
    except json.JSONDecodeError as exc:
        # vLLM decodes the arguments of a call for an answer in Anthropic's form
        await connection.send(request, 400, shapes.error(str(exc), "BadRequestError"), script)
        return
    connection.engine.spent(request, output_tokens=said.total)
    await connection.send(request, 200, body, script)


async def _pause(script: Script, sent: int) -> None:
    """Wait where the script says so: at its gate, or for ever."""
    if script.gate and 0 <= script.gate_after <= sent:
        await script.gate.wait()
    if script.stall_after is not None and sent >= script.stall_after:
        await asyncio.Event().wait()


async def _stream(connection: Connection, request: Request, script: Script, pieces: Iterable[Piece]) -> None:
    connection.begin(request, 200, "text/event-stream; charset=utf-8", None, script)
    if script.first_delay:
        await asyncio.sleep(script.first_delay)
    for piece in pieces:
        sent = request.tokens_sent
        await _pause(script, sent)
        if script.die_after is not None and sent >= script.die_after:
            connection.die(script)
        if script.error_after is not None and sent >= script.error_after:
            fault = script.error or shapes.error("EngineCore encountered an issue.", "InternalServerError", 500)
            await connection.chunk(shapes.sse(fault) + b"data: [DONE]\n\n", script.split)
            break
        if piece.tokens and sent and script.delay:
            await asyncio.sleep(script.delay)
        await connection.chunk(piece.data, script.split)
        connection.engine.spent(request, output_tokens=piece.tokens)
    connection.end()
