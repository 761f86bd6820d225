"""Paths: which protocol and which dialect each one speaks. Served with and without ``/v1``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from lmtower.wire.faults import Dialect

Kind = Literal["model", "models", "props", "health", "ready", "root", "stores", "remembered", "unsupported"]


class Route(NamedTuple):
    """One place to send requests to. ``protocol`` names the preparer for kind ``model``."""

    kind: Kind
    protocol: str
    dialect: Dialect
    methods: tuple[str, ...]
    fim: bool = False


_POST = ("POST",)
_GET = ("GET", "HEAD")
_ROUTES: dict[str, Route] = {
    "/chat/completions": Route("model", "chat", "openai", _POST),
    "/completions": Route("model", "completions", "openai", _POST),
    "/fim/completions": Route("model", "fim", "openai", _POST, fim=True),
    "/infill": Route("model", "infill", "openai", _POST, fim=True),
    "/embeddings": Route("model", "embeddings", "openai", _POST),
    "/rerank": Route("model", "rerank", "openai", _POST),
    "/responses": Route("model", "responses", "responses", _POST),
    "/messages": Route("model", "messages", "anthropic", _POST),
    "/messages/count_tokens": Route("model", "count_tokens", "anthropic", _POST),
    "/models": Route("models", "", "openai", _GET),
    "/health": Route("health", "", "openai", _GET),
    "/healthz": Route("health", "", "openai", _GET),
    "/readyz": Route("ready", "", "openai", _GET),
    "/props": Route("props", "", "openai", _GET),
    "/": Route("root", "", "openai", _GET),
    "/api/hello": Route("root", "", "anthropic", _GET),
}
_ANY = ("GET", "HEAD", "POST", "DELETE")
_UNSUPPORTED = """
    /audio/speech /audio/transcriptions /audio/translations /images/generations /images/edits /images/variations /videos
    /moderations /batches /uploads /assistants /threads /fine_tuning/jobs /evals /realtime /alpha/search /conversations
    /responses/compact /responses/input_tokens /messages/batches /tokenize /detokenize /apply-template /score /classify
"""
"""Routes of the protocols that no engine here serves, or that would give away more than a client may know."""
ROUTES: Mapping[str, Route] = MappingProxyType(
    _ROUTES
    | {"/v1" + path: route for path, route in _ROUTES.items()}
    | {"/v1": _ROUTES["/"], "/v2/rerank": Route("model", "rerank_v2", "openai", _POST)}
)


def find(path: str) -> tuple[Route | None, str]:
    """The route of a path, and what comes after it (the id in ``/v1/models/ID``).

    Tolerates what clients really send: a trailing slash, ``/v1/v1`` (a base URL that ends in /v1 given to a client
    that appends it), Azure's ``/openai/deployments/MODEL/…`` and LiteLLM's ``/engines/MODEL/…``.
    """
    route = ROUTES.get(path)
    if route is not None:
        return route, ""
    cleaned = "/" + "/".join(part for part in path.split("/") if part)
    while cleaned.startswith("/v1/v1"):
        cleaned = cleaned[3:]
    for prefix, tail_at in (("/openai/deployments/", 4), ("/engines/", 3), ("/v1/engines/", 4)):
        if cleaned.startswith(prefix):
            parts = cleaned.split("/", tail_at)
            if len(parts) > tail_at:
                return ROUTES.get("/" + parts[tail_at]), parts[tail_at - 1]
    for prefix in ("/v1/models/", "/models/"):
        if cleaned.startswith(prefix):
            return ROUTES["/models"], cleaned[len(prefix) :]
    bare = cleaned.removeprefix("/v1")
    for prefix in ("/files", "/vector_stores"):
        if bare == prefix or bare.startswith(prefix + "/"):
            return Route("stores", "", "openai", _ANY), cleaned
    for prefix in _UNSUPPORTED.split():
        if bare == prefix or bare.startswith(prefix + "/"):
            return Route("unsupported", "", dialect_of(bare), _ANY), ""
    if bare.startswith("/responses/"):
        return Route("remembered", "", "responses", _ANY), bare.removeprefix("/responses/")
    return ROUTES.get(cleaned), ""


def dialect_of(path: str) -> Dialect:
    """The dialect for errors on a path, known or not."""
    if "/messages" in path or path.startswith("/api/hello"):
        return "anthropic"
    return "responses" if "/responses" in path else "openai"
