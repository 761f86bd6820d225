"""Rate-limit headers in both dialects."""

from __future__ import annotations

import pytest

from lmtower.config.types import Limits
from lmtower.ledger import Client, LimitRefusal, LocalLimits, Reservation
from lmtower.ledger.headers import go_duration
from tests.ledger.records import NOW


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0ms"), (0.012, "12ms"), (0.9996, "1s"), (1, "1s"), (1.5, "1.5s"), (7.661, "7.66s"), (59.999, "1m0s"),
        (60, "1m0s"), (360, "6m0s"), (86_399, "23h59m59s"),
    ],
)  # fmt: skip
def test_go_duration_is_written_as_openai_does(seconds: float, expected: str) -> None:
    """Milliseconds, seconds, minutes, hours."""
    assert go_duration(seconds) == expected


def _limits() -> tuple[LocalLimits, Reservation]:
    limits = LocalLimits()
    client = Client(id="k", name="a", limits=Limits(requests_per_minute=10, tokens_per_minute=1000))
    first = limits.reserve(client, "plan", None, None, 100, 0, NOW)
    assert isinstance(first, Reservation)
    limits.settle(first, 40, 0, 10, 0, NOW + 1)
    second = limits.reserve(client, "plan", Limits(tokens_per_day=500), None, 100, 0, NOW + 6)
    assert isinstance(second, Reservation)
    return limits, second


def test_openai_headers_show_the_tightest_limit() -> None:
    """Requests and tokens each with limit, remaining (held estimates taken off) and reset."""
    limits, held = _limits()
    assert limits.headers(held, "openai", NOW + 6) == [
        ("x-ratelimit-limit-requests", "10"),
        ("x-ratelimit-remaining-requests", "8"),
        ("x-ratelimit-reset-requests", "1m0s"),
        ("x-ratelimit-limit-tokens", "500"),
        ("x-ratelimit-remaining-tokens", "400"),
        ("x-ratelimit-reset-tokens", "0ms"),
    ]


def test_anthropic_headers_give_the_reset_as_a_time() -> None:
    """RFC 3339, UTC."""
    limits, held = _limits()
    assert limits.headers(held, "anthropic", NOW + 6)[:3] == [
        ("anthropic-ratelimit-requests-limit", "10"),
        ("anthropic-ratelimit-requests-remaining", "8"),
        ("anthropic-ratelimit-requests-reset", "2026-11-23T12:31:06Z"),
    ]


def test_refusal_has_headers_too() -> None:
    """A client that was refused sees what it has left: nothing."""
    limits = LocalLimits()
    client = Client(id="k", name="a", limits=Limits(requests_per_minute=1))
    limits.reserve(client, "plan", None, None, 0, 0, NOW)
    refusal = limits.reserve(client, "plan", None, None, 0, 0, NOW + 20)
    assert isinstance(refusal, LimitRefusal)
    assert dict(limits.headers(refusal, "openai", NOW + 20)) == {
        "x-ratelimit-limit-requests": "1",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "40s",
    }
