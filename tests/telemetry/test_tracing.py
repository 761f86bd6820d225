"""Traces: ids that continue the client's, spans that carry numbers and no text, over real OTLP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from lmtower.telemetry.tracing import Tracer, attributes, begin
from tests.telemetry.records import Record

CLIENTS = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@dataclass(frozen=True, slots=True)
class Traced(Record):
    """A record with the fields that spans read, too."""

    protocol: str = "chat"
    session: str = ""
    replica: str = "nemotron@spark"
    status: int = 200


class Collector:
    """An OTLP/HTTP collector that keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            """POST /v1/traces."""

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                for group in ExportTraceServiceRequest.FromString(_plain(body, self.headers)).resource_spans:
                    collector.resources.append({a.key: a.value.string_value for a in group.resource.attributes})
                    collector.spans += [span for scope in group.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: Any) -> None:
                """Silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


def _plain(body: bytes, headers: Any) -> bytes:
    import gzip

    return gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector that runs."""
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def test_trace_of_the_client_is_continued() -> None:
    """Same trace, its span is our parent, the engine is told our span."""
    headers = {b"traceparent": CLIENTS}
    trace = begin(headers)
    assert f"{trace.trace_id:032x}" == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert f"{trace.parent_id:016x}" == "00f067aa0ba902b7"
    assert trace.header == b"00-4bf92f3577b34da6a3ce929d0e0e4736-%016x-01" % trace.span_id
    assert headers == {b"traceparent": CLIENTS}


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"garbage",
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        b"00-" + b"a" * 32 + b"-" + b"0" * 16 + b"-01",
        CLIENTS.upper(),
    ],
)
def test_invalid_parent_begins_a_trace_of_its_own(given: bytes) -> None:
    """What the standard calls invalid is not continued."""
    headers = {b"traceparent": given} if given else {}
    trace = begin(headers)
    assert trace.parent_id == 0
    assert trace.sampled
    assert trace.header.startswith(b"00-%032x-%016x" % (trace.trace_id, trace.span_id))


def test_ids_differ_between_requests() -> None:
    """No two requests share a span."""
    assert len({begin({}).span_id for _ in range(100)}) == 100


def test_attributes_have_genai_names_and_no_text() -> None:
    """Numbers and names only."""
    found = attributes(Traced(session="s-1"))
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "nemotron-plan",
        "gen_ai.usage.input_tokens": 2000,
        "gen_ai.usage.output_tokens": 300,
        "gen_ai.usage.cache_read.input_tokens": 1500,
        "gen_ai.conversation.id": "s-1",
        "gen_ai.server.time_to_first_token": 0.3,
        "lmtower.client": "alice",
        "lmtower.outcome": "ok",
    }
    assert expected.items() <= found.items()
    assert "error.type" not in found


@pytest.mark.parametrize(
    ("protocol", "operation"), [("messages", "chat"), ("infill", "text_completion"), ("rerank", "rerank")]
)
def test_operation_follows_the_protocol(protocol: str, operation: str) -> None:
    """What has no GenAI name keeps its own."""
    assert attributes(Traced(protocol=protocol))["gen_ai.operation.name"] == operation


def test_span_arrives_at_the_collector(collector: Collector) -> None:
    """Name, ids, times, parent, resource, as OTLP."""
    tracer = Tracer.to(collector.url, "1.2.3")
    trace = begin({b"traceparent": CLIENTS})
    tracer.end(trace, Traced())
    tracer.close()
    (span,) = collector.spans
    assert span.name == "chat nemotron-plan"
    assert span.trace_id.hex() == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert (span.parent_span_id.hex(), span.span_id.hex()) == ("00f067aa0ba902b7", f"{trace.span_id:016x}")
    assert (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9 == pytest.approx(4.2)
    assert collector.resources[0]["service.name"] == "lmtower"


def test_failed_request_is_an_error_span(collector: Collector) -> None:
    """Its type is our outcome."""
    tracer = Tracer.to(collector.url + "/v1/traces")
    tracer.end(begin({}), Traced(outcome="upstream_error", status=502, ttft_seconds=None))
    tracer.close()
    (span,) = collector.spans
    assert span.status.code == 2
    assert {a.key: a.value.string_value for a in span.attributes}["error.type"] == "upstream_error"
    assert span.parent_span_id == b""


def test_unsampled_trace_is_not_sent(collector: Collector) -> None:
    """The client decided; the engine is told the same."""
    headers = {b"traceparent": CLIENTS[:-2] + b"00"}
    trace = begin(headers)
    tracer = Tracer.to(collector.url)
    tracer.end(trace, Traced())
    tracer.close()
    assert collector.spans == []
    assert trace.header.endswith(b"-00")
