"""The store service as an ASGI application: who may ask, which handler answers, how refusals look.

Handlers are plain functions in a thread: nothing that searches, reads files or talks to SQL runs in the event loop.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import anyio.to_thread
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from lmtower.stores import files, search_api, stores_api
from lmtower.stores.access import OPERATOR, Caller, client_of_gateway
from lmtower.stores.call import Call, Handler, reply
from lmtower.stores.faults import ApiError
from lmtower.stores.metrics import Lag, render
from lmtower.stores.service import Service

MAX_JSON_BYTES = 8 * 1024**2
_log = logging.getLogger("lmtower.stores")


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """One handler behind the checks that all share."""

    service: Service
    handler: Handler

    async def __call__(self, request: Request) -> Response:
        caller = _caller(self.service, request)
        body = await _body(request)
        call = Call(self.service, caller, dict(request.path_params), dict(request.query_params), body)
        return await anyio.to_thread.run_sync(self.handler, call)


def application(service: Service) -> Starlette:
    lag = Lag()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with lag.watched():
            yield
        await anyio.to_thread.run_sync(service.close)

    async def upload(request: Request) -> Response:
        return await files.upload(service, _caller(service, request), request)

    async def metrics(_: Request) -> Response:
        return PlainTextResponse(await anyio.to_thread.run_sync(render, service, lag))

    async def health(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    table: list[tuple[str, str, Handler]] = [*files.ROUTES, *stores_api.ROUTES, *search_api.ROUTES]
    routes = [Route("/healthz", health), Route("/metrics", metrics)]
    routes.append(_route(service, "POST", "/internal/search", search_api.internal_search))
    for prefix in ("/v1", ""):
        routes.append(Route(f"{prefix}/files", upload, methods=["POST"]))
        routes += [_route(service, method, prefix + path, handler) for method, path, handler in table]
    handlers: dict[Any, Callable[..., Any]] = {
        ApiError: _refused,
        HTTPException: _http,
        SQLAlchemyError: _broken,
        OSError: _broken,
        Exception: _broken,
    }
    return Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)


def _route(service: Service, method: str, path: str, handler: Handler) -> Route:
    endpoint = _Endpoint(service, handler)

    async def run(request: Request) -> Response:
        return await endpoint(request)

    return Route(path, run, methods=[method])


def _caller(service: Service, request: Request) -> Caller:
    """Only the gateway (and the tower's own CLI) know the secret; they say for whom they ask."""
    secret = request.headers.get("x-lmtower-internal", "")
    client = request.headers.get("x-lmtower-client", "")
    if not hmac.compare_digest(secret.encode(), service.settings.secret.encode()) or not client:
        raise ApiError(401, "Vector stores are reached through the gateway, with a key.", code="invalid_api_key")
    if client == OPERATOR:
        return Caller(client)
    return client_of_gateway(unquote(request.headers.get("x-lmtower-client-name", "")) or client, client)


async def _body(request: Request) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_JSON_BYTES:
            raise ApiError(413, f"The request body is larger than {MAX_JSON_BYTES:,} bytes.", code="request_too_large")
        parts.append(part)
    return b"".join(parts)


async def _refused(_: Request, exc: ApiError) -> Response:
    headers = {"retry-after": str(exc.retry_after_seconds)} if exc.retry_after_seconds else {}
    return reply(exc.body(), exc.status, headers)


async def _http(request: Request, exc: HTTPException) -> Response:
    message = {404: f"Unknown path {request.url.path}.", 405: f"{request.method} is not possible here."}
    return reply(ApiError(exc.status_code, message.get(exc.status_code, exc.detail)).body(), exc.status_code)


async def _broken(request: Request, exc: Exception) -> Response:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=exc)
    return reply(ApiError(500, "The store service failed; its log says why.").body(), 500)
