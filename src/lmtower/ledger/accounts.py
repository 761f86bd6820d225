"""What one client or one persona used and may use: the state behind the limits. Pure: time comes in.

An account holds sliding windows for what is over and plain sums for what is in flight. A request *holds* its
estimate from ``hold`` to ``book``; a held amount never expires, however long the request takes. So at any moment
``window + held <= limit``, and with estimates that are upper bounds no window ever exceeds its limit.
"""

from __future__ import annotations

import time
from calendar import timegm
from dataclasses import dataclass, field
from math import ceil, inf

from lmtower.config.types import Limits
from lmtower.ledger.windows import DAY, MINUTE, Entry, SlidingWindow

MAX_RETRY_AFTER = 60
"""Claude Code and the SDKs give up on longer waits, so none is ever asked for."""


@dataclass(frozen=True, slots=True)
class LimitRefusal:
    """Why a request may not run now."""

    reason: str
    """The limit's key in the tower file, such as ``tokens_per_minute``."""
    scope: str
    """``key`` or ``persona``."""
    message: str
    retry_after: int
    """Whole seconds, 1 to 60."""
    hard: bool
    """Waiting a minute will not help: ``insufficient_quota`` and ``x-should-retry: false``."""
    accounts: tuple[Account, ...] = field(default=(), repr=False, compare=False)


def is_unlimited(limits: Limits | None) -> bool:
    """Whether nothing is limited."""
    return limits is None or (
        limits.requests_per_minute is None
        and limits.tokens_per_minute is None
        and limits.tokens_per_day is None
        and limits.images_per_day is None
        and limits.money_per_month is None
        and limits.parallel is None
    )


def kinds_of(limits: Limits) -> tuple[str, ...]:
    """Spans of time that these limits look back on: ``minute``, ``day``, ``month``."""
    minute = limits.requests_per_minute is not None or limits.tokens_per_minute is not None
    day = limits.tokens_per_day is not None or limits.images_per_day is not None
    spans = {"minute": minute, "day": day, "month": limits.money_per_month is not None}
    return tuple(span for span, used in spans.items() if used)


def month_of(now: float) -> tuple[float, float]:
    """Begin and end of the calendar month (UTC)."""
    year, month = time.gmtime(now)[:2]
    following = (year + month // 12, month % 12 + 1)
    return float(timegm((year, month, 1, 0, 0, 0))), float(timegm((*following, 1, 0, 0, 0)))


class Account:
    """Use and limits of one key (``scope`` ``key``) or of one persona over all keys (``persona``)."""

    __slots__ = (
        "held_images", "held_money", "held_tokens", "images_day", "limits", "month_end", "name",
        "requests_minute", "running", "scope", "spent", "tokens_day", "tokens_minute",
    )  # fmt: skip

    def __init__(self, scope: str, name: str, limits: Limits) -> None:
        self.scope = scope
        self.name = name
        self.limits = limits
        self.requests_minute = SlidingWindow(MINUTE)
        self.tokens_minute = SlidingWindow(MINUTE)
        self.tokens_day = SlidingWindow(DAY)
        self.images_day = SlidingWindow(DAY)
        self.spent = 0.0
        self.month_end = 0.0
        self.running = 0
        self.held_tokens = 0
        self.held_images = 0
        self.held_money = 0.0

    def refuse(self, now: float, requests: int, tokens: int, images: int, money: float) -> LimitRefusal | None:
        """What stands against one more request; None: it may run. Changes nothing."""
        limits = self.limits
        if limits.parallel is not None and self.running >= limits.parallel:
            message = f"{limits.parallel} requests of this {self.scope} are running already, and no more may at once"
            return LimitRefusal("parallel", self.scope, message, 1, hard=limits.parallel == 0)
        if (limit := limits.money_per_month) is not None:
            spent = self.spent_in_month(now)
            if spent + self.held_money + money > limit or spent >= limit:
                return self._refuse_money(now, limit, spent, money)
        if (limit := limits.requests_per_minute) is not None and requests:
            used = self.requests_minute.used(now)
            if used + requests > limit:
                return self._refuse_window(
                    "requests_per_minute", "requests", limit, self.requests_minute, now, 0, requests
                )
        if (limit := limits.tokens_per_minute) is not None:
            used = self.tokens_minute.used(now)
            if used + self.held_tokens + tokens > limit:
                return self._refuse_window(
                    "tokens_per_minute", "tokens", limit, self.tokens_minute, now, self.held_tokens, tokens
                )
        if (limit := limits.tokens_per_day) is not None:
            used = self.tokens_day.used(now)
            if used + self.held_tokens + tokens > limit:
                return self._refuse_window(
                    "tokens_per_day", "tokens", limit, self.tokens_day, now, self.held_tokens, tokens
                )
        if (limit := limits.images_per_day) is not None and images:
            used = self.images_day.used(now)
            if used + self.held_images + images > limit:
                return self._refuse_window(
                    "images_per_day", "images", limit, self.images_day, now, self.held_images, images
                )
        return None

    def _refuse_window(
        self, reason: str, unit: str, limit: int, window: SlidingWindow, now: float, held: int, wanted: int
    ) -> LimitRefusal:
        used, span = int(window.total), "minute" if window.seconds == MINUTE else "day"
        place = f"the {self.scope}'s limit is {limit} {unit} per {span}"
        if wanted > limit:
            advice = f"; ask for at most {limit}" + (
                ", for example with a lower max_tokens" if unit == "tokens" else ""
            )
            return LimitRefusal(
                reason, self.scope, f"this request needs up to {wanted} {unit}, {place}{advice}", 60, hard=True
            )
        # What is in flight comes free when it ends, perhaps soon: never a hard refusal for that alone.
        wait = window.wait(now, used + wanted - limit) if used + wanted > limit else 1.0
        held_text = f", {held} are held by running requests" if held else ""
        message = (
            f"{place}: {used} are used{held_text}, this request needs {'up to ' if unit == 'tokens' else ''}{wanted}"
        )
        if wait > MAX_RETRY_AFTER:
            return LimitRefusal(
                reason, self.scope, f"{message}. There is room in {_spoken(wait)}", MAX_RETRY_AFTER, hard=True
            )
        return LimitRefusal(reason, self.scope, message, _whole(wait), hard=False)

    def _refuse_money(self, now: float, limit: float, spent: float, money: float) -> LimitRefusal:
        hard = spent + money > limit or spent >= limit
        text = f"the {self.scope}'s budget is {limit:g} per month: {spent:.4g} is spent, this request needs {money:.4g}"
        if not hard:
            return LimitRefusal(
                "money_per_month", self.scope, f"{text}, and running requests hold {self.held_money:.4g}", 1, hard=False
            )
        wait = self.month_end - now
        return LimitRefusal(
            "money_per_month",
            self.scope,
            f"{text}. The next month begins in {_spoken(wait)}",
            min(60, _whole(wait)),
            hard=True,
        )

    def hold(self, now: float, requests: int, tokens: int, images: int, money: float) -> Entry | None:
        """Count one more running request with its estimates."""
        self.running += 1
        self.held_tokens += tokens
        self.held_images += images
        self.held_money += money
        return (
            self.requests_minute.add(now, requests)
            if requests and self.limits.requests_per_minute is not None
            else None
        )

    def free(self, tokens: int, images: int, money: float) -> None:
        """Give back what ``hold`` held."""
        self.running -= 1
        self.held_tokens -= tokens
        self.held_images -= images
        self.held_money = max(0.0, self.held_money - money) if self.running else 0.0  # floats: forget rounding

    def book(self, now: float, tokens: int, images: int, money: float) -> None:
        """Count what was really used."""
        if tokens:
            self.tokens_minute.add(now, tokens)
            self.tokens_day.add(now, tokens)
        if images:
            self.images_day.add(now, images)
        if money:
            self.spent = self.spent_in_month(now) + money

    def spent_in_month(self, now: float) -> float:
        """Money since the first of the month."""
        if now >= self.month_end:
            self.month_end = month_of(now)[1]
            self.spent = 0.0
        return self.spent


def _whole(seconds: float) -> int:
    return MAX_RETRY_AFTER if seconds == inf else min(MAX_RETRY_AFTER, max(1, ceil(seconds)))


def _spoken(seconds: float) -> str:
    if seconds == inf:
        return "an unknown time"
    for unit, length in (("days", DAY), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{ceil(seconds / length)} {unit}"
    return f"{ceil(seconds)} seconds"
