"""The service's own metrics in Prometheus text, with how late its event loop runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lmtower.stores.service import Service

TICK_SECONDS = 0.05


class Lag:
    """How much later than asked a sleeping task wakes: what everything else in the loop suffers, too."""

    def __init__(self) -> None:
        self.worst_seconds = 0.0
        self.total_seconds = 0.0
        self.ticks = 0

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            late = max(0.0, loop.time() - due)
            self.worst_seconds = max(self.worst_seconds, late)
            self.total_seconds += late
            self.ticks += 1


def render(service: Service, lag: Lag) -> str:
    """Text exposition format. Blocks on SQL."""
    pipeline, searches = service.pipeline, service.searcher.searches
    lines = ["# TYPE lmtower_store_files gauge"]
    lines += [
        f'lmtower_store_files{{stage="{stage}"}} {count}' for stage, count in sorted(service.jobs.depth().items())
    ]
    for name, kind, value in (
        ("lmtower_store_texts_embedded_total", "counter", pipeline.embedded_texts),
        ("lmtower_store_texts_reused_total", "counter", pipeline.reused_texts),
        ("lmtower_store_searches_total", "counter", searches.count),
        ("lmtower_store_search_seconds_total", "counter", searches.seconds),
        ("lmtower_store_ingestion_waiting", "gauge", int(bool(pipeline.trouble))),
        ("lmtower_store_loop_lag_seconds_total", "counter", lag.total_seconds),
        ("lmtower_store_loop_lag_ticks_total", "counter", lag.ticks),
        ("lmtower_store_loop_lag_worst_seconds", "gauge", lag.worst_seconds),
    ):
        lines += [f"# TYPE {name} {kind}", f"{name} {value}"]
    return "\n".join(lines) + "\n"
