"""A prepared request to its engine and back: slot, replica, connection, answer.

A request is sent again only while nothing of an answer has come: on a new connection when a kept one turned out to be
closed, to another replica when one cannot be reached, says that it is not ready (503), or dies. After a death only
once: what a request did to one engine it may do to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmtower.gateway.engine import Engine, Replica
from lmtower.gateway.exchange import JSON, Header
from lmtower.gateway.flow import Flow
from lmtower.gateway.outbox import Outbox
from lmtower.gateway.relay import Relay, Watch
from lmtower.gateway.routing import prefix_key
from lmtower.gateway.upstream import Call, UpstreamLost
from lmtower.logs import get_logger
from lmtower.personas import Prepared
from lmtower.telemetry.families import UPSTREAM_CANCELLED, UPSTREAM_RETRIES
from lmtower.telemetry.metrics import Metrics
from lmtower.wire.answers import MALFORMED, malformed
from lmtower.wire.embeddings import EmbeddingsReply
from lmtower.wire.engine_faults import from_engine
from lmtower.wire.faults import Fault
from lmtower.wire.reply import Again

log = get_logger(__name__)
ATTEMPTS = 3


class Dispatcher:
    """Sends prepared requests to engines. Shared by all requests; holds no state of any of them."""

    def __init__(self, watch: Watch, outbox: Outbox, metrics: Metrics, clock: Callable[[], float]) -> None:
        self.watch = watch
        self.outbox = outbox
        self.metrics = metrics
        self.clock = clock

    async def run(self, flow: Flow, prepared: Prepared) -> None:
        """Admit, send, answer. Raises Fault while the status line has not gone out."""
        assert flow.engine is not None
        assert flow.persona is not None
        admission = flow.engine.admission
        lane = flow.caller.lane or flow.persona.lane
        relay = Relay(flow, prepared.reply, self.clock) if prepared.stream else None
        if relay is not None:
            self.watch.relays.add(relay)
        try:
            entered = self.clock()
            if not admission.try_enter(lane, entered):
                try:
                    await admission.enter(lane, flow.caller.patience)
                finally:
                    entered = self.clock()
                    flow.queue_seconds = entered - flow.started_at
            try:
                if relay is not None:
                    await self._stream(flow, prepared, relay)
                else:
                    await self._whole(flow, prepared)
            finally:
                admission.leave(lane, self.clock() - entered)
        finally:
            if relay is not None:
                self.watch.relays.discard(relay)

    async def send(self, flow: Flow, prepared: Prepared | Again, *, whole: bool) -> tuple[Call, Replica]:
        """Send the request to a replica and wait for its answer: all of it, or the head. Raises Fault(502).

        The caller gives the call and its replica to ``_release``.
        """
        engine = flow.engine
        assert engine is not None
        headers = self._headers(flow, prepared)
        key = self._affinity(flow) if len(engine.replicas) > 1 else None
        tried: frozenset[str] = frozenset()
        died = False
        for _ in range(ATTEMPTS):
            replica = engine.choose(key, tried)
            if replica is None:
                break
            call: Call | None = None
            replica.in_flight += 1
            try:
                call = replica.pool.kept_call(prepared.path, prepared.pieces, headers)
                if call is None:
                    call = await replica.pool.call(prepared.path, prepared.pieces, headers=headers)
                flow.replica = replica.upstream.replica
                if whole:
                    await call.done()
                else:
                    await call.head()
                if replica.circuit.failures:
                    replica.circuit.succeeded()
                if call.status == 503 and engine.choose(key, tried | {flow.replica}) is not None:
                    tried |= {flow.replica}
                    replica.in_flight -= 1
                    call.close()
                    self.metrics.count(UPSTREAM_RETRIES, *_whose(flow), "not_ready")
                    continue
            except UpstreamLost as lost:
                replica.in_flight -= 1
                if lost.late:
                    log.warning("engine too slow", engine=engine.name, reason=str(lost), request_id=flow.request_id)
                    raise _late(lost) from None
                if call is not None and call.status:
                    replica.circuit.succeeded()
                    raise _died() from None
                self._lost(flow, engine, replica, call, lost)
                if call is None or not lost.fresh:
                    tried |= {replica.upstream.replica}
                if call is not None and not lost.fresh:
                    if died:
                        break
                    died = True
            except BaseException:
                self._release(flow, call, replica)
                raise
            else:
                return call, replica
        if died:
            raise _died()
        raise Fault(502, "engine_unavailable", "The engine is not running or cannot be reached.", retry_after=5)

    def _headers(self, flow: Flow, prepared: Prepared | Again) -> list[Header]:
        headers = [(b"x-request-id", flow.request_id.encode()), *prepared.headers]
        if flow.trace is not None:
            headers.append((b"traceparent", flow.trace.header))
        elif flow.caller.traced:
            headers.append((b"traceparent", flow.exchange.request.headers[b"traceparent"]))
        return headers

    def _lost(self, flow: Flow, engine: Engine, replica: Replica, call: Call | None, lost: UpstreamLost) -> None:
        """A replica gave no answer."""
        log.warning("engine lost", engine=engine.name, replica=replica.upstream.replica, reason=str(lost))
        self.metrics.count(UPSTREAM_RETRIES, *_whose(flow), "connection" if lost.fresh else "unreachable")
        if lost.fresh and call is not None:
            replica.pool.drop_idle()
            return
        replica.circuit.failed(self.clock())
        engine.resize()

    async def _fetch(self, flow: Flow, prepared: Prepared | Again) -> bytes:
        """Send a request whose answer comes as a whole; see ``_body``."""
        return self._body(flow, prepared, *await self.send(flow, prepared, whole=True))

    def _body(self, flow: Flow, prepared: Prepared | Again, call: Call, replica: Replica) -> bytes:
        """The body of an answer with status 200, or of a failure that the reply can make good. Raises Fault."""
        replica.in_flight -= 1
        body = call.gathered()
        if call.status != 200 and not (isinstance(prepared, Prepared) and prepared.reply.recovered(call.status, body)):
            raise self._refusal(flow, call.status, body)
        return body

    async def _whole(self, flow: Flow, prepared: Prepared) -> None:
        reply = prepared.reply
        body = self._body(flow, prepared, *await self.send(flow, prepared, whole=True))
        if prepared.more:
            answer = await self._batches(flow, prepared, body)
        elif reply.again is None:
            try:
                answer = reply.body(body)
            except MALFORMED as exc:
                raise malformed() from exc
        if reply.again is not None:
            answer = await self._again(flow, prepared)
        self._learn(flow, prepared)
        flow.held = True
        flow.done()
        self.outbox.put(flow.exchange, [JSON, *flow.headers], answer)

    async def _batches(self, flow: Flow, prepared: Prepared, first: bytes) -> bytes:
        """The rest of a request that was split over the engine's limit, one batch after the other."""
        reply = prepared.reply
        assert isinstance(reply, EmbeddingsReply)
        bodies = [first]
        for pieces in prepared.more:
            bodies.append(await self._fetch(flow, Again(prepared.path, pieces)))
        return _read(reply.join, bodies)

    async def _again(self, flow: Flow, prepared: Prepared) -> bytes:
        """The second request that the first answer turned out to need."""
        again = prepared.reply.again
        assert again is not None
        return _read(prepared.reply.retried, await self._fetch(flow, again))

    async def _stream(self, flow: Flow, prepared: Prepared, relay: Relay) -> None:
        relay.waiting_since = self.clock()
        call, replica = await self.send(flow, prepared, whole=False)
        reply = prepared.reply
        try:
            if call.status != 200 or not call.event_stream:
                raise await self._not_a_stream(flow, call)
            relay.attach(call)
            try:
                await call.done()
            except UpstreamLost:
                if relay.fault is None and not reply.enough and not reply.complete:
                    relay.fault = Fault(502, "engine_unavailable", "The engine died in the middle of this answer.")
            self._finish(flow, prepared, relay)
        finally:
            flow.exchange.on_pause = flow.exchange.on_resume = None
            relay.call = None  # which holds the relay, and with it the request's body
            self._release(flow, call, replica)
        if reply.again is not None and relay.fault is None:
            await self._finish_again(flow, prepared, relay)
        self._learn(flow, prepared)
        if reply.complete:
            flow.exchange.finish()

    async def _not_a_stream(self, flow: Flow, call: Call) -> Fault:
        try:
            return self._refusal(flow, call.status, await call.body())
        except UpstreamLost as lost:
            return _late(lost) if lost.late else _died()

    async def _finish_again(self, flow: Flow, prepared: Prepared, relay: Relay) -> None:
        """The end of a stream that a second request makes possible; keep-alives go on meanwhile."""
        relay.call = None
        try:
            last = await self._again(flow, prepared)
            flow.done()
            flow.exchange.send(last)
        except Fault as fault:
            relay.fault = fault.with_traceback(None)
            self._break(flow, prepared, relay)

    def _finish(self, flow: Flow, prepared: Prepared, relay: Relay) -> None:
        """Send the last bytes; an answer that is not complete ends with the protocol's error and a cut connection."""
        reply = prepared.reply
        if relay.fault is None:
            try:
                last = _read(lambda _: reply.end(), None)
                if reply.complete:
                    flow.done()
                flow.exchange.send(last)
            except Fault as fault:
                relay.fault = fault.with_traceback(None)
        if reply.again is not None and relay.fault is None:
            return
        if relay.fault is None and not reply.complete:
            relay.fault = Fault(502, "engine_error", "The engine ended the stream before the answer was complete.")
        self._break(flow, prepared, relay)

    def _break(self, flow: Flow, prepared: Prepared, relay: Relay) -> None:
        if relay.fault is not None:
            flow.outcome = "upstream_error"
            flow.status = relay.fault.status
            flow.exchange.send(prepared.reply.broken(relay.fault))
            if not prepared.reply.complete:
                flow.exchange.abort()

    def _refusal(self, flow: Flow, status: int, body: bytes) -> Fault:
        assert flow.persona is not None
        if status == 200:
            return Fault(502, "engine_error", "The engine answered a streaming request without a stream.")
        fault = from_engine(status, body, flow.persona.secrets)
        if status in (404, 405, 501) and flow.protocol not in ("chat", "completions"):
            fault = _not_supported(flow, fault)
        if fault.status >= 500:
            flow.outcome = "upstream_error"
            log.warning("engine error", engine=flow.persona.engine, status=status, request_id=flow.request_id)
        return fault

    def _release(self, flow: Flow, call: Call | None, replica: Replica) -> None:
        replica.in_flight -= 1
        if call is not None and not call.complete and call.error is None:
            self.metrics.count(UPSTREAM_CANCELLED, *_whose(flow))
            call.close()

    def _learn(self, flow: Flow, prepared: Prepared) -> None:
        usage = prepared.reply.usage
        if usage.known and flow.engine is not None and not flow.images:
            flow.engine.learn(flow.prompt_bytes, usage.input_tokens)

    def _affinity(self, flow: Flow) -> bytes:
        """What requests with the same prefix have in common: their session, else how their conversation begins."""
        if flow.session:
            return flow.session.encode()
        if flow.end_user:
            return flow.end_user.encode()
        return prefix_key(flow.protocol, flow.asked, flow.exchange.request.body)


def _died() -> Fault:
    return Fault(502, "engine_unavailable", "The engine died while it worked on this request.")


def _late(lost: UpstreamLost) -> Fault:
    """The engine was given up. What took longer than the tower waits will again, and the engine worked in vain."""
    return Fault(504, "engine_timeout", str(lost), should_retry=False)


def _whose(flow: Flow) -> tuple[str, str, str]:
    """The labels of events upstream: client, persona, engine."""
    assert flow.client is not None
    assert flow.persona is not None
    return flow.client.name, flow.persona.name, flow.persona.engine


def _read(reading: Callable[[Any], bytes], given: Any) -> bytes:
    """What a reply makes of an engine's answer. Raises Fault, also when the answer is not what its protocol says."""
    try:
        return reading(given)
    except MALFORMED as exc:
        raise malformed() from exc


def _not_supported(flow: Flow, fault: Fault) -> Fault:
    """An engine without this protocol: say so, in words that a person can act on."""
    message = f"The engine of the model {flow.asked!r} does not support {flow.protocol.replace('_', ' ')} requests."
    return Fault(501, "not_supported", message, should_retry=False, param=fault.param)
