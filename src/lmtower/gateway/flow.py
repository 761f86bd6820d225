"""One model request on its way: what is known of it, and the usage record that is made of it at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lmtower.gateway.caller import Caller
from lmtower.gateway.engine import Engine
from lmtower.gateway.exchange import Exchange, Header
from lmtower.ledger import Client, Outcome, Reservation, UsageRecord
from lmtower.personas import CompiledPersona
from lmtower.telemetry.tracing import Trace
from lmtower.wire.reply import Reply


class Flow:
    """Facts of one request, filled in as it proceeds. Times are on the loop's clock, in seconds.

    What a usual request leaves as it is stands in the class: each need not be set thirty times for every request.
    """

    time = 0.0
    """Seconds since the epoch."""
    client: Client | None = None
    persona: CompiledPersona | None = None
    engine: Engine | None = None
    replica = ""
    reply: Reply | None = None
    reservation: Reservation | None = None
    asked = ""
    end_user = ""
    session = ""
    stream = False
    retry = False
    images = 0
    image_tokens = 0
    """By the recipe's formula; the engine's own number wins."""
    queue_seconds = 0.0
    first_at = 0.0
    last_at = 0.0
    status = 200
    outcome: Outcome = "ok"
    recorded = False
    held = False
    """The answer waits in the outbox, which writes the record first."""
    tool_calls: Sequence[int] = ()
    """valid, repaired, retried, rejected; nothing unless the persona is strict"""
    trace: Trace | None = None

    def __init__(
        self,
        exchange: Exchange,
        caller: Caller,
        request_id: str,
        on_done: Callable[[Flow], None],
    ) -> None:
        assert caller.route is not None
        self.exchange = exchange
        self.caller = caller
        self.snapshot = caller.snapshot
        self.protocol = caller.route.protocol
        self.dialect = caller.dialect
        self.request_id = request_id
        self.headers: list[Header] = [(b"x-request-id", request_id.encode()), *caller.cors]
        """Headers of whatever answer goes out."""
        self.started_at = exchange.request.received
        self.body_bytes = len(exchange.request.body)
        self.on_done = on_done

    @property
    def prompt_bytes(self) -> int:
        """The client's body without pictures, and the persona's prompt that goes with it: what tokens come from."""
        added = self.persona.prompt_json if self.persona is not None else None
        return self.body_bytes + len(added) if added else self.body_bytes

    def done(self) -> None:
        """Write the usage record, once. Called before the last bytes go out, so that an answer that a client has in
        full is on record even if the tower is killed in the next instant."""
        if not self.recorded:
            self.recorded = True
            self.on_done(self)

    def record(self, now: float) -> UsageRecord:
        """The usage record, with estimates where a cancelled request never got its numbers."""
        client, persona, engine, reply = self.client, self.persona, self.engine, self.reply
        record = UsageRecord(
            request_id=self.request_id,
            time=self.time,
            client_id=client.id if client else "",
            client=client.name if client else "",
            end_user=self.end_user,
            session=self.session,
            persona=persona.name if persona else "",
            engine=engine.name if engine else "",
            replica=self.replica,
            protocol=self.protocol,
            lane=self.caller.lane or (persona.lane if persona else ""),
            outcome=self.outcome,
            status=self.status,
            duration_seconds=now - self.started_at,
        )
        if self.first_at:
            record.ttft_seconds = self.first_at - self.started_at
        # what few requests have is set only on them
        if self.stream:
            record.stream = True
        if self.queue_seconds:
            record.queue_seconds = self.queue_seconds
        if self.images:
            record.images = self.images
        if self.retry:
            record.retry = True
        if reply is not None:
            self._count(record, reply)
        calls = self.tool_calls
        if calls:
            record.tool_calls_valid, record.tool_calls_repaired = calls[0], calls[1]
            record.tool_calls_retried, record.tool_calls_rejected = calls[2], calls[3]
        return record

    def _count(self, record: UsageRecord, reply: Reply) -> None:
        usage = reply.usage
        if usage.known:
            record.input_tokens = usage.input_tokens
            record.cached_tokens = usage.cached_tokens
            record.output_tokens = usage.output_tokens
            record.image_tokens = usage.image_tokens or self.image_tokens
            record.reasoning_tokens = usage.reasoning_tokens
        elif self.engine is not None and self.replica and self.outcome != "refused":
            # the engine worked on it, but its usage never came: count what was seen, estimate the rest
            record.input_tokens = int(self.prompt_bytes / self.engine.bytes_per_token) + self.image_tokens
            record.image_tokens = self.image_tokens
            record.output_tokens = reply.events
