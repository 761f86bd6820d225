"""What happens to every request: route, key, persona, limits, engine, record. The gateway's table of contents."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any

import msgspec

from lmtower.gateway import coding, identity, side
from lmtower.gateway.caller import Caller, Way, cors
from lmtower.gateway.dispatch import Dispatcher
from lmtower.gateway.exchange import JSON, Exchange, Header, Request
from lmtower.gateway.flow import Flow
from lmtower.gateway.intake import Intake
from lmtower.gateway.knowledge import Knowledge
from lmtower.gateway.newest import Newest
from lmtower.gateway.quota import Quota
from lmtower.gateway.remembered import Remembered, echo
from lmtower.gateway.routes import Route
from lmtower.gateway.snapshot import Snapshot
from lmtower.guard import Rules
from lmtower.ledger import Client, Ledger, Outcome, UsageRecord
from lmtower.logs import get_logger
from lmtower.personas import PREPARERS, CompiledPersona, prepare
from lmtower.telemetry.families import AUTH_FAILURES
from lmtower.telemetry.metrics import Metrics
from lmtower.telemetry.tracing import Tracer, begin
from lmtower.wire import faults
from lmtower.wire import top as tops
from lmtower.wire.faults import Fault
from lmtower.wire.top import Top

log = get_logger(__name__)


class Handler:
    """Serves the client-facing listener. ``snapshot`` may be replaced at any time; a request reads it once."""

    def __init__(
        self,
        snapshot: Snapshot,
        ledger: Ledger,
        metrics: Metrics,
        dispatcher: Dispatcher,
        knowledge: Knowledge,
        clock: Callable[[], float],
        on_record: Callable[[UsageRecord], None],
    ) -> None:
        self.snapshot = snapshot
        self.ledger = ledger
        self.metrics = metrics
        self.dispatcher = dispatcher
        self.knowledge = knowledge
        self.quota = Quota(ledger, metrics)
        self.intake = Intake(metrics)
        self.remembered = Remembered(clock)
        self.newest = Newest()
        self.draining = False
        self.tracer: Tracer | None = None
        self._clock = clock
        self._on_record = on_record
        self._prefix = "req_" + secrets.token_hex(6)
        self._count = count()

    def __call__(self, exchange: Exchange) -> Coroutine[Any, Any, None]:
        """Answer one request."""
        request = exchange.request
        caller = self._caller(request)
        request_id = request.id = caller.request_id or f"{self._prefix}{next(self._count):08x}"
        answering = self._model if caller.asks_model else self._other
        return answering(exchange, caller, request_id)

    def _caller(self, request: Request) -> Caller:
        """What is known of the request's head, found out anew after a reload or a change of any key."""
        snapshot, keys = self.snapshot, self.ledger.keys
        caller: Caller | None = request.head.known
        if caller is None or caller.snapshot is not snapshot or caller.keys is not keys:
            caller = request.head.known = Caller(request, snapshot, keys)
        return caller

    async def _other(self, exchange: Exchange, caller: Caller, request_id: str) -> None:
        request, route = exchange.request, caller.route
        try:
            if request.method == "OPTIONS":
                self._preflight(exchange, caller, request_id)
            elif route is None:
                raise Fault(404, "unknown_route", f"There is no {request.method} {request.path[:200]} here.")
            elif request.method not in route.methods:
                allow = (b"allow", ", ".join(route.methods).encode())
                raise Fault(405, "method_not_allowed", f"Use {' or '.join(route.methods)}.", headers=(allow,))
            elif route.kind == "unsupported":
                message = f"{request.path[:200]} is not supported by this tower."
                raise Fault(501, "not_supported", message, should_retry=False)
            elif route.kind == "stores":
                self._open()
                headers = [(b"x-request-id", request_id.encode()), *caller.cors]
                client = self.client(caller, request)
                if caller.coding:
                    await coding.decode(request, caller.coding, caller.snapshot.tower.gateway.max_body)
                await self.knowledge.forward(exchange, client, caller.tail, headers)
            else:
                self._side(exchange, caller, route, request_id)
        except Fault as fault:
            self.refuse(exchange, fault, caller, request_id)

    def refuse(self, exchange: Exchange, fault: Fault, caller: Caller, request_id: str) -> None:
        """Answer with an error, in the stream if it has begun."""
        if exchange.started:
            exchange.send(faults.event(fault, caller.dialect, request_id))
            exchange.abort()
            return
        headers = [JSON, (b"x-request-id", request_id.encode()), *fault.header_lines(), *caller.cors]
        exchange.respond(
            faults.status(fault, caller.dialect), headers, faults.render(fault, caller.dialect, request_id)
        )

    def door(self, request: Request) -> None:
        """Look at the key of a request whose body is still to come. Raises Fault."""
        self._open()
        self.client(self._caller(request), request)

    def cors(self, request: Request) -> list[Header]:
        """See ``caller.cors``."""
        return cors(request, self.snapshot.tower.gateway.cors)

    def _open(self) -> None:
        """Raises Fault(503) while the tower shuts down."""
        if self.draining:
            raise _shutting_down()

    # -- model requests --------------------------------------------------------------------------------------

    async def _model(self, exchange: Exchange, caller: Caller, request_id: str) -> None:
        flow = Flow(exchange, caller, request_id, self._record)
        flow.time = time.time()
        if self.tracer is not None:
            flow.trace = begin(exchange.request.headers)
        try:
            await self._serve(flow, caller)
        except Fault as fault:
            flow.status = faults.status(fault, flow.dialect)
            if flow.outcome == "ok":
                flow.outcome = _outcome(fault)
            flow.done()
            self.refuse(exchange, fault, caller, request_id)
        except asyncio.CancelledError:
            flow.outcome = "cancelled"
            flow.status = 499
            if not self.draining:
                raise
            flow.done()
            self.refuse(exchange, _shutting_down(), caller, request_id)  # nobody reads it, or the time is over
        except BaseException:
            flow.outcome = "error"
            flow.status = 500
            raise
        finally:
            flow.done()

    async def _serve(self, flow: Flow, caller: Caller) -> None:
        request = flow.exchange.request
        self._open()
        flow.client = self.client(caller, request)
        if caller.coding:
            await coding.decode(request, caller.coding, caller.snapshot.tower.gateway.max_body)
            flow.body_bytes = len(request.body)
        opened = self.intake.open(flow.client.id, flow.protocol, request.body)
        top = opened.abridged.top
        way = self._way(flow, caller, top)
        persona = flow.persona = way.persona
        if caller.end_user or "user" in top:
            flow.end_user = caller.end_user or identity.field(top, "user")
        if caller.session or "prompt_cache_key" in top:
            flow.session = caller.session or identity.field(top, "prompt_cache_key")
        opening = None
        if flow.protocol == "responses":
            opening = self.remembered.open(flow.client.id, top, caller.snapshot.tower.gateway.keep_responses)
        rules: Rules | None = None
        if not opened.plain or flow.session or persona.tools == "strict":
            rules = await self.intake.take(flow, opened, persona)
        found = await self.knowledge.search(flow, top, persona) if persona.stores or "tools" in top else None
        prepared = prepare(flow.protocol, top, persona, flow.asked, flow.request_id)
        if prepared.local is not None:
            flow.exchange.respond(200, [JSON, *flow.headers], prepared.local)
            return
        if opening is not None:
            echo(prepared.reply, opening)
        if rules is not None:
            self.intake.guard(flow, prepared, rules)
        if found is not None:
            prepared.reply = self.knowledge.cite(prepared.reply, found)
        if opening is not None:
            prepared.reply = self.remembered.keep(opening, prepared.reply)
        flow.engine = way.engine
        flow.reply = prepared.reply
        flow.stream = prepared.stream
        if not way.free:
            await self.quota.reserve(flow, top)
        if way.fim:
            editor = (flow.client.id, persona.name, *identity.editor(request, flow.session or flow.end_user))
            with self.newest.only(editor, request.body, flow.exchange.cancel):
                await self.dispatcher.run(flow, prepared)
        else:
            await self.dispatcher.run(flow, prepared)

    def client(self, caller: Caller, request: Request) -> Client:
        """The client behind a request's key. Raises Fault(401)."""
        client = caller.client
        if client is not None and (client.expires_at is None or client.expires_at > time.time()):
            return client
        tokens = identity.tokens(request.headers)
        for token in tokens:
            client = self.ledger.find(token)
            if client is not None:
                if b"x-lmtower-on-behalf-of" in request.headers:
                    client = self._on_behalf(caller, request) or client
                caller.client = client
                return client
        self.metrics.count(AUTH_FAILURES, "unknown_key" if tokens else "missing_key")
        if tokens:
            raise Fault(401, "invalid_api_key", "This API key is not valid: unknown, expired or revoked.")
        raise Fault(401, "missing_api_key", "Send an API key as 'Authorization: Bearer <key>' or in 'x-api-key'.")

    def _on_behalf(self, caller: Caller, request: Request) -> Client | None:
        """The client that the store service embeds for: its usage, its limits. Raises Fault when it has no key."""
        behalf = self.knowledge.behalf(request.headers)
        if behalf is None:
            return None
        client = self.ledger.named(behalf.client)
        if client is None:
            raise Fault(403, "client_unknown", f"No active key is called {behalf.client[:100]!r}.", should_retry=False)
        caller.lane = behalf.lane
        # which persona embeds is the tower's choice: a key that may not name it may still have stores
        return msgspec.structs.replace(client, personas=None)

    def _way(self, flow: Flow, caller: Caller, top: Top) -> Way:
        """Where the request's model leads. Raises Fault."""
        written = top.get("model")
        key = b"" if written is None else bytes(written)
        way = caller.ways.get(key)
        if way is None:
            way = self._find_way(flow, caller, top)
            caller.remember(key, way)
        flow.asked = way.asked
        return way

    def _find_way(self, flow: Flow, caller: Caller, top: Top) -> Way:
        client, route, snapshot = flow.client, caller.route, caller.snapshot
        assert client is not None
        assert route is not None
        asked = tops.text(top, "model") or caller.tail
        flow.asked = asked
        persona = flow.persona = self._persona(snapshot, client, asked, route)
        if route.protocol not in PREPARERS:
            path = flow.exchange.request.path
            raise Fault(501, "not_supported", f"{path} is not supported by this tower.", should_retry=False)
        fim = route.fim or (route.protocol == "completions" and bool(persona.fim))
        free = not caller.repeats and self.quota.is_free(client, persona)
        return Way(asked or persona.name, persona, snapshot.engines[persona.engine], fim=fim, free=free)

    def _persona(self, snapshot: Snapshot, client: Client, asked: str, route: Route) -> CompiledPersona:
        if not asked and client.personas is not None:
            allowed = [p for p in snapshot.personas.values() if p.name in client.personas]
            if allowed:
                return next((p for p in allowed if p.fim or not route.fim), allowed[0])
        persona = snapshot.find(asked, fim=route.fim)
        if client.personas is not None and persona.name not in client.personas:
            raise Fault(403, "model_not_allowed", f"This API key may not use the model {asked[:100]!r}.", param="model")
        return persona

    def _record(self, flow: Flow) -> None:
        if flow.client is None:
            return
        record = flow.record(self._clock())
        if flow.reservation is not None:
            self.quota.settle(flow, record)
        if flow.held:
            self.ledger.hold(record)
        else:
            self.ledger.record(record)
        self.metrics.finished(record)
        if flow.stream and flow.last_at > flow.first_at and record.output_tokens > 1:
            series = self.metrics.series(record.persona, record.client, record.engine, record.lane)
            series.inter_token((flow.last_at - flow.first_at) / (record.output_tokens - 1))
        self._on_record(record)
        if self.tracer is not None and flow.trace is not None:
            self.tracer.end(flow.trace, record)

    # -- everything else -------------------------------------------------------------------------------------

    def _side(self, exchange: Exchange, caller: Caller, route: Route, request_id: str) -> None:
        snapshot = caller.snapshot
        status, answer = 200, b'{"status":"ok"}'
        if route.kind == "models":
            answer = side.models_of(snapshot, self.client(caller, exchange.request), caller.tail)
        elif route.kind == "props":
            answer = side.props(snapshot, self.client(caller, exchange.request))
        elif route.kind == "remembered":
            client = self.client(caller, exchange.request)
            answer = self.remembered.answer(exchange.request, client.id, caller.tail)
        elif route.kind == "ready":
            conditions = {engine.name: engine.condition() for engine in snapshot.engines.values()}
            ready = all(condition == "ready" for condition in conditions.values()) and not self.draining
            status = 200 if ready else 503
            answer = msgspec.json.encode({"status": "ready" if ready else "not_ready", "engines": conditions})
        exchange.respond(status, [JSON, (b"x-request-id", request_id.encode()), *caller.cors], answer)

    def _preflight(self, exchange: Exchange, caller: Caller, request_id: str) -> None:
        headers = [(b"x-request-id", request_id.encode()), *caller.cors]
        if len(headers) > 1:
            wanted = exchange.request.headers.get(b"access-control-request-headers", b"authorization, content-type")
            headers += [
                (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
                (b"access-control-allow-headers", wanted),
                (b"access-control-max-age", b"600"),
            ]
        exchange.respond(204, headers, b"")


def _shutting_down() -> Fault:
    return Fault(503, "shutting_down", "The tower is shutting down.", retry_after=10)


def _outcome(fault: Fault) -> Outcome:
    """What a request that ends with this error is recorded as."""
    if fault.code == "superseded":
        return "cancelled"
    return "upstream_error" if fault.code.startswith("engine_") else "refused"
