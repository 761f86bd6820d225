"""Answers that leave together, behind one write of their usage records.

An answer may not leave before its record is on disk, and under load that write costs as much as a tenth of a request.
The answers that are ready in one turn of the loop share it: they wait here until the turn's end, which on an idle
gateway is at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lmtower.gateway.exchange import Exchange, Headers


class Outbox:
    """``flush`` writes the records that were held back."""

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush
        self._answers: list[tuple[Exchange, Headers, bytes]] = []

    def put(self, exchange: Exchange, headers: Headers, body: bytes) -> None:
        """Answer with status 200 when the records are written."""
        exchange.promise()
        if not self._answers:
            asyncio.get_running_loop().call_soon(self._leave)
        self._answers.append((exchange, headers, body))

    def _leave(self) -> None:
        answers, self._answers = self._answers, []
        self._flush()
        for exchange, headers, body in answers:
            exchange.respond(200, headers, body)
