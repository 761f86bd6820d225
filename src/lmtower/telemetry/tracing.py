"""Optional OpenTelemetry traces: one span per request, with the GenAI attribute names, sent over OTLP/HTTP.

Theory of operation. A request's span is only made when it is over, from its usage record; at the beginning just its
ids are drawn, because the engine must be told its parent: the gateway sends ``Trace.header`` in the place of the
client's ``traceparent``. So the engine's span hangs under ours, and ours under the client's. Export
happens on a thread of the SDK in batches; a collector that is gone costs nothing but the spans.

The GenAI conventions are still in development and left OpenTelemetry's main package, so the names are written here.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lmtower.errors import Refused
from lmtower.telemetry.series import Finished

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_TRACEPARENT = re.compile(rb"^00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$")
_OPERATIONS = {
    "chat": "chat",
    "messages": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "fim": "text_completion",
    "infill": "text_completion",
    "embeddings": "embeddings",
}


@dataclass(frozen=True, slots=True)
class Trace:
    """Ids of one request: its trace, its own span, and the client's span that it hangs under (0: none)."""

    trace_id: int
    span_id: int
    parent_id: int
    sampled: bool

    @property
    def header(self) -> bytes:
        """The ``traceparent`` for the engine: its parent is our span."""
        return b"00-%032x-%016x-%02x" % (self.trace_id, self.span_id, self.sampled)


class Traced(Finished, Protocol):
    """What a span is made of, beside what metrics read."""

    @property
    def protocol(self) -> str: ...
    @property
    def session(self) -> str: ...
    @property
    def replica(self) -> str: ...
    @property
    def status(self) -> int: ...


def begin(headers: Mapping[bytes, bytes]) -> Trace:
    """Draw the ids of a request with these headers."""
    match = _TRACEPARENT.match(headers.get(b"traceparent", b""))
    trace_id = int(match[1], 16) if match else 0
    parent_id = int(match[2], 16) if match else 0
    if not (trace_id and parent_id):  # "All bytes as zero is considered an invalid value"
        trace_id, parent_id = secrets.randbits(128) or 1, 0
    sampled = bool(int(match[3], 16) & 1) if match and parent_id else True
    return Trace(trace_id, secrets.randbits(64) or 1, parent_id, sampled)


def attributes(record: Traced) -> dict[str, Any]:
    """The span's attributes. No content, no key: names and numbers only."""
    found: dict[str, Any] = {
        "gen_ai.operation.name": _OPERATIONS.get(record.protocol, record.protocol),
        "gen_ai.provider.name": "lmtower",
        "gen_ai.request.model": record.persona,
        "gen_ai.usage.input_tokens": record.input_tokens,
        "gen_ai.usage.output_tokens": record.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "gen_ai.usage.reasoning.output_tokens": record.reasoning_tokens,
        "http.response.status_code": record.status,
        "lmtower.request_id": record.request_id,
        "lmtower.client": record.client,
        "lmtower.engine": record.engine,
        "lmtower.replica": record.replica,
        "lmtower.lane": record.lane,
        "lmtower.outcome": record.outcome,
        "lmtower.queue_seconds": record.queue_seconds,
    }
    if record.session:
        found["gen_ai.conversation.id"] = record.session
    if record.ttft_seconds is not None:
        found["gen_ai.server.time_to_first_token"] = record.ttft_seconds
    if record.outcome not in ("ok", "cancelled"):
        found["error.type"] = record.outcome
    return found


class Tracer:
    """Sends finished requests as spans."""

    def __init__(self, exporter: SpanExporter, version: str = "") -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._processor = BatchSpanProcessor(exporter)
        self._resource = Resource.create({"service.name": "lmtower", "service.version": version})

    @classmethod
    def to(cls, endpoint: str, version: str = "") -> Tracer:
        """A tracer for an OTLP/HTTP endpoint (``http://collector:4318``). Raises Refused without the extra."""
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError as exc:
            raise Refused("observability.tracing needs the extra: pip install 'lmtower[tracing]'") from exc
        url = endpoint.rstrip("/")
        return cls(OTLPSpanExporter(endpoint=url if url.endswith("/v1/traces") else f"{url}/v1/traces"), version)

    def end(self, trace: Trace, record: Traced) -> None:
        """Hand the finished request over to the exporter's thread."""
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        if not trace.sampled:
            return
        flags = TraceFlags(TraceFlags.SAMPLED)
        start = int(record.time * 1e9)
        failed = record.outcome not in ("ok", "cancelled")
        span = ReadableSpan(
            name=f"{_OPERATIONS.get(record.protocol, record.protocol)} {record.persona}",
            context=SpanContext(trace.trace_id, trace.span_id, is_remote=False, trace_flags=flags),
            parent=SpanContext(trace.trace_id, trace.parent_id, is_remote=True, trace_flags=flags)
            if trace.parent_id
            else None,
            resource=self._resource,
            attributes=attributes(record),
            kind=SpanKind.SERVER,
            status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
            start_time=start,
            end_time=start + int(record.duration_seconds * 1e9),
        )
        self._processor.on_end(span)

    def close(self) -> None:
        """Send what is left; takes as long as the collector does. Call it off the event loop."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]
