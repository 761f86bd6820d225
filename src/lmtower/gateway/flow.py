"""One model request on its way: what is known of it, and the usage record that is made of it at the end."""

from __future__ import annotations

from collections.abc import Callable

from lmtower.gateway.engine import Engine
from lmtower.gateway.exchange import Exchange, Header
from lmtower.gateway.snapshot import Snapshot
from lmtower.ledger import Client, Reservation, UsageRecord
from lmtower.ledger.types import Outcome
from lmtower.personas import CompiledPersona
from lmtower.telemetry.tracing import Trace
from lmtower.wire.faults import Dialect
from lmtower.wire.reply import Reply


class Flow:
    """Facts of one request, filled in as it proceeds. Times are on the loop's clock, in seconds."""

    __slots__ = (
        "asked",
        "body_bytes",
        "client",
        "dialect",
        "end_user",
        "engine",
        "exchange",
        "first_at",
        "headers",
        "image_tokens",
        "images",
        "last_at",
        "on_done",
        "outcome",
        "persona",
        "protocol",
        "queue_seconds",
        "recorded",
        "replica",
        "reply",
        "request_id",
        "reservation",
        "retry",
        "session",
        "snapshot",
        "started_at",
        "status",
        "stream",
        "time",
        "tool_calls",
        "trace",
    )

    def __init__(
        self, exchange: Exchange, snapshot: Snapshot, protocol: str, dialect: Dialect, request_id: str
    ) -> None:
        self.exchange = exchange
        self.snapshot = snapshot
        self.protocol = protocol
        self.dialect = dialect
        self.request_id = request_id
        self.headers: list[Header] = [(b"x-request-id", request_id.encode())]
        """Headers of whatever answer goes out."""
        self.started_at = exchange.request.received
        self.body_bytes = len(exchange.request.body)
        self.time = 0.0
        """Seconds since the epoch."""
        self.client: Client | None = None
        self.persona: CompiledPersona | None = None
        self.engine: Engine | None = None
        self.replica = ""
        self.reply: Reply | None = None
        self.reservation: Reservation | None = None
        self.asked = ""
        self.end_user = ""
        self.session = ""
        self.stream = False
        self.retry = False
        self.images = 0
        self.image_tokens = 0
        """By the recipe's formula; the engine's own number wins."""
        self.queue_seconds = 0.0
        self.first_at = 0.0
        self.last_at = 0.0
        self.status = 200
        self.outcome: Outcome = "ok"
        self.recorded = False
        self.on_done: Callable[[Flow], None] | None = None
        self.tool_calls = [0, 0, 0, 0]
        """valid, repaired, retried, rejected"""
        self.trace: Trace | None = None

    def done(self) -> None:
        """Write the usage record, once. Called before the last bytes go out, so that an answer that a client has in
        full is on record even if the tower is killed in the next instant."""
        if not self.recorded:
            self.recorded = True
            if self.on_done is not None:
                self.on_done(self)

    def record(self, now: float) -> UsageRecord:
        """The usage record, with estimates where a cancelled request never got its numbers."""
        client, persona, engine = self.client, self.persona, self.engine
        usage = self.reply.usage if self.reply is not None else None
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
            lane=persona.lane if persona else "",
            outcome=self.outcome,
            status=self.status,
            stream=self.stream,
            images=self.images,
            queue_seconds=self.queue_seconds,
            ttft_seconds=self.first_at - self.started_at if self.first_at else None,
            duration_seconds=now - self.started_at,
            retry=self.retry,
        )
        if usage is not None and usage.known:
            record.input_tokens = usage.input_tokens
            record.cached_tokens = usage.cached_tokens
            record.image_tokens = usage.image_tokens or self.image_tokens
            record.output_tokens = usage.output_tokens
            record.reasoning_tokens = usage.reasoning_tokens
        elif self.reply is not None and engine is not None and self.replica:
            # the engine worked on it, but its usage never came: count what was seen, estimate the rest
            record.input_tokens = int(self.body_bytes / engine.bytes_per_token) + self.image_tokens
            record.image_tokens = self.image_tokens
            record.output_tokens = self.reply.events
        (
            record.tool_calls_valid,
            record.tool_calls_repaired,
            record.tool_calls_retried,
            record.tool_calls_rejected,
        ) = self.tool_calls
        return record
