"""The admin listener: metrics, status, keys, usage, reload, explain. Private address, admin key, known host names.

``/metrics``, ``/admin/targets`` and ``/healthz`` are open to whoever reaches the listener; everything else asks for
the admin key. The Host header must be one that the tower knows, which stops a web page from reaching a loopback
address through a name of its own (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs, unquote

import msgspec

from lmtower.config.types import LANES
from lmtower.errors import Refused, TowerError, UnknownKey
from lmtower.gateway import admin_keys, routes
from lmtower.gateway.exchange import JSON, Exchange, Request
from lmtower.gateway.status import status
from lmtower.personas import explain
from lmtower.telemetry import prometheus
from lmtower.telemetry.families import HOLDS
from lmtower.wire import faults
from lmtower.wire.faults import Fault

if TYPE_CHECKING:
    from lmtower.gateway.app import Gateway

OPEN = frozenset(("/metrics", "/admin/targets", "/healthz"))


class EngineControl(Protocol):
    """What ``lmtower up`` offers when it supervises engines itself."""

    async def start(self, engine: str) -> None: ...
    async def stop(self, engine: str) -> None: ...
    async def restart(self, engine: str) -> None: ...
    async def logs(self, engine: str, lines: int) -> str: ...
    def states(self) -> Mapping[str, tuple[str, str]]:
        """Engine -> its state and why, as whoever starts and stops it knows."""
        ...

    def absent(self, url: str) -> bool:
        """Whether the engine of this URL is known not to run: whoever answers there is a stranger."""
        ...


class Admin:
    """Answers the admin listener."""

    def __init__(self, gateway: Gateway, key: str, control: EngineControl | None) -> None:
        self._gateway = gateway
        self._key = key.encode()
        self._control = control
        self._routes: dict[tuple[str, str], Callable[[Request], Awaitable[Any]]] = {
            ("GET", "/admin/status"): self._status,
            ("POST", "/admin/reload"): self._reload,
            ("GET", "/admin/keys"): self._keys,
            ("POST", "/admin/keys"): self._create_key,
            ("GET", "/admin/usage"): self._usage,
            ("GET", "/admin/requests"): self._requests,
            ("GET", "/admin/targets"): self._targets,
            ("POST", "/admin/explain"): self._explain,
            ("POST", "/admin/hold"): self._hold,
            ("GET", "/healthz"): self._alive,
        }

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one admin request."""
        request = exchange.request
        try:
            self._check_host(request)
            if request.path not in OPEN:
                self._check_key(request)
            if request.path == "/metrics":
                await self._metrics(exchange, request.header(b"accept"))
                return
            answer = await self._answer(request)
        except Fault as fault:
            exchange.respond(fault.status, [JSON], faults.render(fault, "openai", ""))
        except TowerError as exc:
            status_code = 404 if isinstance(exc, UnknownKey) else 400 if isinstance(exc, Refused) else 500
            failed = Fault(status_code, "admin_error", str(exc))
            exchange.respond(failed.status, [JSON], faults.render(failed, "openai", ""))
        else:
            exchange.respond(200, [JSON], msgspec.json.encode(answer))

    async def _metrics(self, exchange: Exchange, accept: str) -> None:
        """A large page is made in pieces, so that streams go on in between."""
        kind, parts = self._gateway.metrics.render_parts(accept)
        page = []
        for part in parts:
            page.append(part.encode())
            await asyncio.sleep(0)
        exchange.respond(200, [(b"content-type", kind.encode())], b"".join(page))

    async def _answer(self, request: Request) -> Any:
        handler = self._routes.get((request.method, request.path))
        if handler is not None:
            return await handler(request)
        parts = request.path.strip("/").split("/")
        if parts[:2] == ["admin", "keys"] and len(parts) == 3:
            key = unquote(parts[2])
            if request.method == "PATCH":
                return await self._change_key(request, key)
            if request.method == "DELETE":
                return await self._revoke_key(key)
        if parts[:2] == ["admin", "engines"] and len(parts) == 4:
            return await self._engine(request, parts[2], parts[3])
        raise Fault(404, "unknown_route", f"There is no {request.method} {request.path[:200]} here.")

    def _check_key(self, request: Request) -> None:
        given = request.headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if not hmac.compare_digest(given, self._key):
            raise Fault(401, "invalid_admin_key", "Send the admin key (admin.key in the data folder) as Bearer token.")

    def _check_host(self, request: Request) -> None:
        host = request.header(b"host").rsplit(":", 1)[0].strip("[]").lower()
        settings = self._gateway.snapshot.tower.gateway
        known = {"localhost", "", settings.admin.rpartition(":")[0].strip("[]").lower(), *settings.hosts}
        if host in known:
            return
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise Fault(403, "unknown_host", f"The host name {host!r} is not listed in gateway.hosts.") from None

    # -- routes ----------------------------------------------------------------------------------------------

    async def _alive(self, request: Request) -> Any:
        return {"status": "ok"}

    async def _status(self, request: Request) -> Any:
        known = {} if self._control is None else self._control.states()
        answer = status(self._gateway)
        for row in answer["engines"]:
            # from outside a stopped engine looks like a failed one, and why it failed cannot be seen at all
            if row["state"] != "ready" and row["name"] in known:
                row["state"], row["detail"] = known[row["name"]]
        return {**answer, "supervised": self._control is not None}

    async def _reload(self, request: Request) -> Any:
        self._gateway.reload()
        return {"version": self._gateway.snapshot.version, "restart": self._gateway.restart}

    async def _keys(self, request: Request) -> Any:
        now = time.time()
        rows = await asyncio.to_thread(self._gateway.ledger.list_keys)
        return {"keys": [row.as_dict(now) for row in rows]}

    async def _create_key(self, request: Request) -> Any:
        wanted = admin_keys.new_key(_object(request), self._gateway.snapshot.personas)
        made = await asyncio.to_thread(self._gateway.ledger.create_key, **wanted)
        return {"key": made.secret, **made.client.as_dict()}

    async def _change_key(self, request: Request, key: str) -> Any:
        edit = admin_keys.edit(_object(request), self._gateway.snapshot.personas)
        return (await asyncio.to_thread(self._gateway.ledger.change_key, key, edit)).as_dict()

    async def _revoke_key(self, key: str) -> Any:
        await asyncio.to_thread(self._gateway.ledger.revoke_key, key)
        return {"revoked": key}

    async def _usage(self, request: Request) -> Any:
        query = _query(request)
        by = tuple(query.get("by", "client,persona").split(","))
        since, until = (_number(query, name, None) for name in ("since", "until"))
        report = await asyncio.to_thread(self._gateway.ledger.usage, by, since, until)
        return report.as_dict()

    async def _requests(self, request: Request) -> Any:
        limit = int(_number(_query(request), "limit", 50) or 0)
        return {"requests": list(self._gateway.recent)[::-1][: max(0, min(500, limit))]}

    async def _targets(self, request: Request) -> Any:
        """Prometheus http_sd: the gateway itself, every engine, every node agent."""
        snapshot = self._gateway.snapshot
        engines = [
            prometheus.EngineTarget(engine.name, upstream.replica, upstream.url, upstream.runtime)
            for engine in snapshot.engines.values()
            for upstream in engine.upstreams
        ]
        return prometheus.targets(snapshot.tower, engines)

    async def _explain(self, request: Request) -> Any:
        body = _object(request)
        if isinstance(body.get("session"), str):
            return {"sessions": self._gateway.handler.intake.busters.report(body["session"])}
        snapshot = self._gateway.snapshot
        persona = snapshot.find(body.get("persona"))
        route, _ = routes.find(str(body.get("path", "/v1/chat/completions")))
        if route is None or route.kind != "model":
            raise Fault(400, "unknown_route", "The field 'path' is not a model route.", param="path")
        upstream = snapshot.engines[persona.engine].upstreams[0]
        return explain(
            route.protocol,
            msgspec.json.encode(body.get("request", {})),
            persona,
            engine_url=upstream.url,
            has_key=upstream.api_key is not None,
            mask=body.get("mask", True) is not False,
        )

    async def _hold(self, request: Request) -> Any:
        """The watchdog of a node asks to stop (or allow again) some lanes on its engines."""
        body = _object(request)
        lanes = frozenset(lane for lane in LANES if lane in (body.get("lanes") or ()))
        held = []
        for engine in self._gateway.snapshot.engines.values():
            if body.get("engine") == engine.name or any(u.node == body.get("node") for u in engine.upstreams if u.node):
                before = engine.admission.held
                engine.admission.hold(before | lanes if body.get("on", True) else before - lanes)
                for lane in engine.admission.held - before:
                    self._gateway.metrics.count(HOLDS, engine.name, lane)
                held.append({"engine": engine.name, "held": sorted(engine.admission.held)})
        return {"engines": held}

    async def _engine(self, request: Request, engine: str, action: str) -> Any:
        control = self._control
        if control is None:
            raise Fault(409, "not_supervised", "This tower does not run its engines; use lmtower on the command line.")
        if engine not in self._gateway.snapshot.engines:
            raise Fault(404, "unknown_engine", f"There is no engine {engine[:100]!r}.")
        if request.method == "GET" and action == "logs":
            lines = int(_number(_query(request), "lines", 200) or 0)
            return {"log": await control.logs(engine, max(0, min(5000, lines)))}
        actions = {"start": control.start, "stop": control.stop, "restart": control.restart}
        if request.method != "POST" or action not in actions:
            raise Fault(404, "unknown_route", f"There is no {request.method} {request.path[:200]} here.")
        await actions[action](engine)
        await self._gateway.snapshot.engines[engine].look()
        return {"engine": engine, "done": action}


def _object(request: Request) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(request.body or b"{}")
    except msgspec.DecodeError as exc:
        raise Fault(400, "invalid_json", f"The body is not valid JSON: {exc}.") from None
    if not isinstance(body, dict):
        raise Fault(400, "invalid_json", "The body must be a JSON object.")
    return body


def _query(request: Request) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(request.query.decode("latin-1")).items()}


def _number(query: dict[str, str], name: str, default: float | None) -> float | None:
    try:
        value = float(query[name]) if name in query else default
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise Fault(400, "invalid_query", f"{name}={query[name][:50]} is not a number.", param=name)
    return value
