"""Usage records for the tests of this room."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """The fields of a usage record that metrics read, with everyday values."""

    request_id: str = "req-1"
    time: float = 1_800_000_000.0
    client: str = "alice"
    end_user: str = ""
    persona: str = "nemotron-plan"
    engine: str = "nemotron"
    lane: str = "default"
    outcome: str = "ok"
    input_tokens: int = 2000
    cached_tokens: int = 1500
    image_tokens: int = 0
    output_tokens: int = 300
    reasoning_tokens: int = 100
    images: int = 0
    tool_calls_valid: int = 1
    tool_calls_repaired: int = 0
    tool_calls_retried: int = 0
    tool_calls_rejected: int = 0
    queue_seconds: float = 0.002
    ttft_seconds: float | None = 0.3
    duration_seconds: float = 4.2
    retry: bool = False
    cost: float = 0.01
