"""Usage records for tests."""

from __future__ import annotations

from typing import Any

from lmtower.ledger import UsageRecord

NOW = 1_795_437_000.0
"""2026-11-23 12:30 UTC."""


def record(number: int = 0, **fields: Any) -> UsageRecord:
    """One finished chat request, with the fields that matter to the test."""
    usual: dict[str, Any] = {
        "request_id": f"req_{number}",
        "time": NOW + number,
        "client_id": "key_1",
        "client": "alice",
        "persona": "plan",
        "engine": "nemotron",
        "protocol": "chat",
        "lane": "default",
        "input_tokens": 100,
        "output_tokens": 10,
    }
    return UsageRecord(**(usual | fields))
