"""Personas: what each is, a box to try it, and the body that would be sent to the engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from lmtower.config.types import Persona
from lmtower.console import trial, words
from lmtower.console.console import Console, console_of, session_of
from lmtower.console.settings import Json
from lmtower.errors import AdminError

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "reasoning_effort", "seed")
_MOST_TOKENS = 8192


def facts(persona: Persona) -> list[tuple[str, str]]:
    """What the tower file says of a persona, in words. The prompt itself stays where it is."""
    found = []
    if persona.system:
        found.append(("System prompt", f"{len(persona.system):,} characters"))
    if persona.thinking:
        found.append(("Thinking", str(persona.thinking)))
    defaults = persona.model_dump(include=set(_SAMPLING), exclude_none=True)
    if defaults:
        found.append(
            ("Defaults", ", ".join(f"{name} {words.plain(defaults[name])}" for name in _SAMPLING if name in defaults))
        )
    enforced = persona.enforce.model_dump(exclude_none=True)
    if enforced:
        found.append(("Enforced", ", ".join(f"{name} {words.plain(value)}" for name, value in enforced.items())))
    if persona.tools != Persona.model_fields["tools"].default:
        found.append(("Tools", str(persona.tools)))
    if persona.fim:
        found.append(("Fill in the middle", persona.fim))
    if persona.prefix:
        found.append(("Prefix", persona.prefix.strip()))
    if persona.stores:
        found.append(("Stores", ", ".join(persona.stores)))
    if persona.context:
        found.append(("Context", f"{words.count(persona.context)} tokens"))
    if persona.ttft_target:
        found.append(("TTFT target", words.seconds(persona.ttft_target)))
    limits = words.limits(persona.limits.model_dump(exclude_none=True))
    if limits:
        found.append(("Limits", ", ".join(limits)))
    return found


async def listing(request: Request) -> Response:
    """All of them as cards."""
    console = console_of(request)
    return console.page(request, "personas", personas=await _rows(console, session_of(request).key))


async def one(request: Request) -> Response:
    """One persona with its try-it box."""
    console = console_of(request)
    name = request.path_params["name"]
    rows = await _rows(console, session_of(request).key)
    persona = next((row for row in rows if row["name"] == name), None)
    if persona is None:
        raise HTTPException(404, f"There is no persona {name!r}.")
    return console.page(request, "persona", persona=persona)


async def _rows(console: Console, key: str) -> list[Json]:
    status = await console.tower.get(key, "/admin/status")
    file = await console.file()
    pooling = await console.pooling(file) if file else frozenset()
    rows = []
    for row in status["personas"]:
        persona = file.personas.get(row["name"]) if file else None
        more: Json = {"kind": "chat", "facts": [], "model": ""}
        if persona is not None and file is not None:
            engine = file.engines.get(persona.engine)
            more = {
                "kind": trial.kind_of(row["name"], persona, pooling),
                "facts": facts(persona),
                "model": engine.model if engine else "",
            }
        rows.append({**row, **more})
    return rows


async def attempt(request: Request) -> Response:
    """Send what was typed; the answer streams back as JSON lines."""
    console, session = console_of(request), session_of(request)
    path, body, _ = await _asked(request)

    async def lines() -> AsyncIterator[bytes]:
        try:
            key = await console.client_key.get(session.key)
            for again in (True, False):
                refused = False
                async for line in trial.ask(console.web, console.settings.gateway_url, key, path, body):
                    refused = again and line.get("status") == 401
                    if not refused:
                        yield json.dumps(line).encode() + b"\n"
                if not refused:
                    return
                # somebody revoked the console's key: one more is made, once
                key = await console.client_key.renew(session.key)
        except AdminError as error:
            yield json.dumps({"error": str(error)}).encode() + b"\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


async def explain(request: Request) -> Response:
    """What the gateway would send upstream. The prompt is masked unless ``reveal`` is asked for."""
    console, session = console_of(request), session_of(request)
    path, body, reveal = await _asked(request)
    question = {"persona": body["model"], "path": path, "request": body, "mask": not reveal}
    try:
        answer = await console.tower.post(session.key, "/admin/explain", question)
    except AdminError as error:
        return JSONResponse({"error": str(error)}, 400)
    return JSONResponse({"body": json.dumps(answer.get("body"), indent=2, ensure_ascii=False), "rules": _rules(answer)})


def _rules(answer: Json) -> list[str]:
    return [f"{rule[0]}: {rule[1]}" if isinstance(rule, list) else str(rule) for rule in answer.get("rules") or ()]


async def _asked(request: Request) -> tuple[str, Json, bool]:
    console = console_of(request)
    name = request.path_params["name"]
    file = await console.file()
    persona = file.personas.get(name) if file else None
    try:
        given = await request.json()
        prompt, suffix = str(given.get("prompt", "")), str(given.get("suffix", ""))
        max_tokens = min(_MOST_TOKENS, int(given.get("max_tokens") or 0)) or None
        reveal = given.get("reveal") is True
    except (ValueError, AttributeError) as exc:
        raise HTTPException(400, "The body is not what the console's own page sends.") from exc
    kind = trial.kind_of(name, persona, await console.pooling(file)) if persona and file else "chat"
    path, body = trial.request_of(kind, name, prompt, suffix=suffix, max_tokens=max_tokens)
    return path, body, reveal


ROUTES = [
    Route("/personas", listing, methods=["GET"]),
    Route("/personas/{name:path}/try", attempt, methods=["POST"]),
    Route("/personas/{name:path}/explain", explain, methods=["POST"]),
    Route("/personas/{name:path}", one, methods=["GET"]),
]
