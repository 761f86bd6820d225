"""The usage record: what one request used. Light, because the process that moves records imports it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Outcome = Literal["ok", "cancelled", "error", "refused", "upstream_error"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "cancelled", "error", "refused", "upstream_error")
Count = Annotated[int, msgspec.Meta(ge=-(10**12), le=10**12)]
"""What an engine may report. A number that no request can have would not fit into SQL, alone or in a sum: a line of the
journal with one counts as unreadable."""


class UsageRecord(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What one request used. Times are in seconds; ``time`` is when it came in, in seconds since the epoch."""

    request_id: str
    time: float
    client_id: str = ""
    client: str = ""
    end_user: str = ""
    session: str = ""
    persona: str = ""
    engine: str = ""
    replica: str = ""
    protocol: str = ""
    lane: str = ""
    outcome: Outcome = "ok"
    status: int = 200
    stream: bool = False
    input_tokens: Count = 0
    """All tokens of the prompt, those from the cache and of images included."""
    cached_tokens: Count = 0
    image_tokens: Count = 0
    output_tokens: Count = 0
    """All tokens of the answer, those of reasoning included."""
    reasoning_tokens: Count = 0
    images: int = 0
    tool_calls_valid: int = 0
    tool_calls_repaired: int = 0
    tool_calls_retried: int = 0
    tool_calls_rejected: int = 0
    queue_seconds: float = 0.0
    ttft_seconds: float | None = None
    duration_seconds: float = 0.0
    retry: bool = False
    """The SDK sent this request again; it is not counted as one more request."""
    cost: float = 0.0
    """Money by the persona's price (``Limits.settle`` returns it)."""
