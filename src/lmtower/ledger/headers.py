"""``x-ratelimit-*`` headers in the dialects of OpenAI and Anthropic. Pure: time comes in."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

from lmtower.ledger.accounts import Account
from lmtower.ledger.windows import SlidingWindow

Dialect = Literal["openai", "anthropic"]


def limit_headers(accounts: Iterable[Account], dialect: Dialect, now: float) -> list[tuple[str, str]]:
    """Limit, remaining and reset of requests and tokens: of each, the limit with the least room. None set: empty."""
    found: list[tuple[str, str]] = []
    accounts = tuple(accounts)
    requests = [_room(a.limits.requests_per_minute, a.requests_minute, 0, now) for a in accounts]
    tokens = [_room(a.limits.tokens_per_minute, a.tokens_minute, a.held_tokens, now) for a in accounts]
    tokens += [_room(a.limits.tokens_per_day, a.tokens_day, a.held_tokens, now) for a in accounts]
    for unit, rooms in (("requests", requests), ("tokens", tokens)):
        tightest = min((room for room in rooms if room is not None), default=None)
        if tightest is not None:
            remaining, limit, reset = tightest
            found += _render(dialect, unit, limit, remaining, reset, now)
    return found


def _room(limit: int | None, window: SlidingWindow, held: int, now: float) -> tuple[int, int, float] | None:
    if limit is None:
        return None
    return max(0, limit - int(window.used(now)) - held), limit, window.reset(now)


def _render(dialect: Dialect, unit: str, limit: int, remaining: int, reset: float, now: float) -> list[tuple[str, str]]:
    if dialect == "anthropic":
        stem, when = (
            f"anthropic-ratelimit-{unit}-",
            datetime.fromtimestamp(now + reset, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        return [(stem + "limit", str(limit)), (stem + "remaining", str(remaining)), (stem + "reset", when)]
    return [
        (f"x-ratelimit-limit-{unit}", str(limit)),
        (f"x-ratelimit-remaining-{unit}", str(remaining)),
        (f"x-ratelimit-reset-{unit}", go_duration(reset)),
    ]


def go_duration(seconds: float) -> str:
    """As OpenAI writes it: ``12ms``, ``1.5s``, ``6m0s``, ``23h59m59s``."""
    milliseconds = round(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    if milliseconds < 59_995:
        return f"{milliseconds / 1000:.2f}".rstrip("0").rstrip(".") + "s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"
