"""Traces through the gateway: the engine's span hangs under ours, ours under the client's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmtower.telemetry.tracing import Trace
from tests.fakes.engine import FakeEngine
from tests.gateway.support import running, tower_of

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Spans:
    """In the place of the tracer: keeps what it would send."""

    def __init__(self) -> None:
        self.ended: list[tuple[Trace, Any]] = []

    def end(self, trace: Trace, record: Any) -> None:
        """Keep it."""
        self.ended.append((trace, record))

    def close(self) -> None:
        """Nothing is left to send."""


@pytest.fixture
def engine() -> Any:
    """An engine that records headers."""
    with FakeEngine() as fake:
        yield fake


async def test_engine_is_told_our_span(engine: FakeEngine, tmp_path: Path) -> None:
    """One trace from client to engine, and the span has the record's numbers."""
    async with running(tmp_path, engine) as tower:
        spans = Spans()
        tower.gateway.handler.tracer = spans  # type: ignore[assignment]
        tower.client.headers["traceparent"] = PARENT
        assert (await tower.chat("plan")).status_code == 200
    ((trace, record),) = spans.ended
    sent = engine.to("/chat/completions")[0].headers["traceparent"]
    assert sent == f"00-4bf92f3577b34da6a3ce929d0e0e4736-{trace.span_id:016x}-01"
    assert f"{trace.parent_id:016x}" == "00f067aa0ba902b7"
    assert (record.persona, record.outcome) == ("plan", "ok")


async def test_without_tracing_the_header_passes(engine: FakeEngine, tmp_path: Path) -> None:
    """The client's own trace reaches the engine unchanged."""
    async with running(tmp_path, engine) as tower:
        tower.client.headers["traceparent"] = PARENT
        await tower.chat("plan")
    assert engine.to("/chat/completions")[0].headers["traceparent"] == PARENT


async def test_dead_collector_does_not_stop_requests(engine: FakeEngine, tmp_path: Path) -> None:
    """Spans are lost, answers are not."""
    tower_file = tower_of(engine, observability={"tracing": "http://127.0.0.1:9"})
    async with running(tmp_path, engine, tower=tower_file) as tower:
        assert tower.gateway.handler.tracer is not None
        assert (await tower.chat("plan")).status_code == 200
