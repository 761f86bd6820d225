"""The admin listener: metrics, status, keys, usage, reload, explain. Private address, admin key, known host names.

``/metrics``, ``/admin/targets`` and ``/healthz`` are open to whoever reaches the listener; everything else asks for
the admin key. The Host header must be one that the tower knows, which stops a web page from reaching a loopback
address through a name of its own (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs

import msgspec
from pydantic import ValidationError

from lmtower.config.types import LANES, Limits
from lmtower.errors import Refused, TowerError
from lmtower.gateway import routes
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
            failed = Fault(400 if isinstance(exc, Refused) else 500, "admin_error", str(exc))
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
        if request.method == "DELETE" and parts[:2] == ["admin", "keys"] and len(parts) == 3:
            await asyncio.to_thread(self._gateway.ledger.revoke_key, parts[2])
            return {"revoked": parts[2]}
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
        return {"version": self._gateway.snapshot.version}

    async def _keys(self, request: Request) -> Any:
        now = time.time()
        rows = await asyncio.to_thread(self._gateway.ledger.list_keys)
        return {"keys": [row.as_dict(now) for row in rows]}

    async def _create_key(self, request: Request) -> Any:
        body = _object(request)
        name = body.pop("name", None)
        if not isinstance(name, str) or not name:
            raise Fault(400, "missing_field", "The field 'name' is missing.", param="name")
        unknown = set(body) - {"personas", "expires_at", "limits"}
        if unknown:
            raise Fault(400, "unknown_field", f"Unknown field {sorted(unknown)[0]!r}.")
        limits = _limits(body.get("limits"))
        made = await asyncio.to_thread(
            self._gateway.ledger.create_key, name, body.get("personas"), limits, body.get("expires_at")
        )
        return {"key": made.secret, "id": made.client.id, "name": made.client.name}

    async def _usage(self, request: Request) -> Any:
        query = _query(request)
        by = tuple(query.get("by", "client,persona").split(","))
        since, until = (float(query[k]) if k in query else None for k in ("since", "until"))
        report = await asyncio.to_thread(self._gateway.ledger.usage, by, since, until)
        return report.as_dict()

    async def _requests(self, request: Request) -> Any:
        limit = min(500, int(_query(request).get("limit", "50")))
        return {"requests": list(self._gateway.recent)[-limit:][::-1]}

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
            return {"log": await control.logs(engine, min(5000, int(_query(request).get("lines", "200"))))}
        actions = {"start": control.start, "stop": control.stop, "restart": control.restart}
        if request.method != "POST" or action not in actions:
            raise Fault(404, "unknown_route", f"There is no {request.method} {request.path[:200]} here.")
        await actions[action](engine)
        return {"engine": engine, "done": action}


def _object(request: Request) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(request.body or b"{}")
    except msgspec.DecodeError as exc:
        raise Fault(400, "invalid_json", f"The body is not valid JSON: {exc}.") from None
    if not isinstance(body, dict):
        raise Fault(400, "invalid_json", "The body must be a JSON object.")
    return body


def _limits(given: Any) -> Limits | None:
    if given is None:
        return None
    try:
        return Limits.model_validate(given)
    except ValidationError as exc:
        first = exc.errors()[0]
        raise Fault(400, "invalid_limits", f"limits.{first['loc'][0]}: {first['msg']}.", param="limits") from None


def _query(request: Request) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(request.query.decode("latin-1")).items()}
