"""Limits of keys and personas in this process: reserve before the engine is touched, settle with what was used.

No ``await`` anywhere: a check and its reservation cannot be interleaved with another request's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from lmtower.config.types import Limits, Price
from lmtower.ledger.accounts import Account, LimitRefusal, is_unlimited
from lmtower.ledger.client import Client
from lmtower.ledger.headers import Dialect, limit_headers
from lmtower.ledger.windows import Entry

RETRY_SECONDS = 600.0
MAX_RETRIES = 5
"""Repeats of one request that are not counted again. A client that lies in its retry header gains no more."""
_MAX_SEEN = 20_000
_UNLIMITED = Limits()


class Reservation:
    """Room held for one request. Give it to ``settle`` (it ran) or ``release`` (it did not), exactly once."""

    __slots__ = ("accounts", "cost", "done", "entries", "images", "money", "price", "retry", "seen", "tokens")

    def __init__(
        self, accounts: tuple[Account, ...], price: Price | None, tokens: int, images: int, money: float, retry: bool
    ) -> None:
        self.accounts = accounts
        self.price = price
        self.tokens = tokens
        self.images = images
        self.money = money
        self.retry = retry
        """This is a repeat of a request that was counted: set ``UsageRecord.retry`` to it."""
        self.cost = 0.0
        self.done = False
        self.entries: tuple[Entry | None, ...] = ()
        self.seen: tuple[str, str] | None = None


class LocalLimits:
    """Limits counted in this process. ``default`` applies to keys without limits of their own."""

    shared = False
    """Whether this is ``SharedLimits``, whose ``reserve_shared`` is to be awaited instead of calling ``reserve``."""

    def __init__(self) -> None:
        self.default: Limits = Limits()
        self.history: Callable[[Account], None] | None = None
        """Fills a new account with what was used before this process began."""
        self._keys: dict[str, Account] = {}
        self._personas: dict[str, Account] = {}
        self._seen: dict[tuple[str, str], list[float]] = {}

    async def start(self) -> None:
        """Nothing: this process is ready."""

    async def close(self) -> None:
        """Nothing."""

    def is_free(self, client: Client, persona_name: str, persona_limits: Limits | None) -> bool:
        """Whether neither the key nor the persona is limited, so that nothing needs to be held."""
        return not self._accounts(client, persona_name, persona_limits)

    def reserve(
        self,
        client: Client,
        persona_name: str,
        persona_limits: Limits | None,
        price: Price | None,
        tokens_estimate: int,
        images: int = 0,
        now: float | None = None,
        *,
        output_estimate: int | None = None,
        retry: bool = False,
        fingerprint: str = "",
    ) -> Reservation | LimitRefusal:
        """Room for one request, or why there is none.

        ``tokens_estimate`` is an upper bound of input and output together, ``output_estimate`` the part of it that
        is output (None: not known, the dearer price is taken). ``retry`` is the SDK's claim to repeat an earlier
        request; it is believed if one with that ``fingerprint`` (idempotency key, or hash of the body) was counted.
        """
        if now is None:
            now = time.time()
        is_retry = bool(fingerprint) and self._is_retry((client.id, fingerprint), now, retry)
        accounts = self._accounts(client, persona_name, persona_limits)
        if not accounts:
            reservation = Reservation((), price, 0, 0, 0.0, is_retry)
        else:
            requests = 0 if is_retry else 1
            money = 0.0 if price is None else dearest(price, tokens_estimate, output_estimate, images)
            for account in accounts:
                refusal = account.refuse(now, requests, tokens_estimate, images, money)
                if refusal is not None:
                    return replace(refusal, accounts=accounts)
            reservation = self._hold(accounts, price, tokens_estimate, images, money, is_retry, now)
        if fingerprint:
            reservation.seen = self._remember((client.id, fingerprint), now, is_retry)
        return reservation

    def _hold(
        self,
        accounts: tuple[Account, ...],
        price: Price | None,
        tokens: int,
        images: int,
        money: float,
        is_retry: bool,
        now: float,
    ) -> Reservation:
        reservation = Reservation(accounts, price, tokens, images, money, is_retry)
        requests = 0 if is_retry else 1
        reservation.entries = tuple([account.hold(now, requests, tokens, images, money) for account in accounts])
        return reservation

    def settle(
        self,
        reservation: Reservation,
        input_tokens: int = 0,
        cached_tokens: int = 0,
        output_tokens: int = 0,
        images: int = 0,
        now: float | None = None,
    ) -> float:
        """Replace the estimate by what was used; returns what it cost. Only the first call counts."""
        if reservation.done:
            return reservation.cost
        reservation.done = True
        if reservation.price is not None:
            reservation.cost = reservation.price.of(input_tokens, cached_tokens, output_tokens, images)
        if reservation.accounts:
            if now is None:
                now = time.time()
            for account in reservation.accounts:
                account.free(reservation.tokens, reservation.images, reservation.money)
                account.book(now, input_tokens + output_tokens, images, reservation.cost)
        return reservation.cost

    def release(self, reservation: Reservation) -> None:
        """Undo the reservation: the request was refused for another reason and counts for nothing."""
        if reservation.done:
            return
        reservation.done = True
        for account, entry in zip(reservation.accounts, reservation.entries, strict=True):
            account.free(reservation.tokens, reservation.images, reservation.money)
            if entry is not None:
                account.requests_minute.take_back(entry, 1)
        if reservation.seen is not None:
            self._seen.pop(reservation.seen, None)

    async def reserve_shared(
        self,
        client: Client,
        persona_name: str,
        persona_limits: Limits | None,
        price: Price | None,
        tokens_estimate: int,
        images: int = 0,
        now: float | None = None,
        *,
        output_estimate: int | None = None,
        retry: bool = False,
        fingerprint: str = "",
    ) -> Reservation | LimitRefusal:
        """``reserve``; for callers that do not care where limits are counted."""
        return self.reserve(
            client, persona_name, persona_limits, price, tokens_estimate, images, now,
            output_estimate=output_estimate, retry=retry, fingerprint=fingerprint,
        )  # fmt: skip

    def headers(
        self, held: Reservation | LimitRefusal, dialect: Dialect = "openai", now: float | None = None
    ) -> list[tuple[str, str]]:
        """Rate-limit headers for the answer to that request; empty when nothing is limited."""
        return limit_headers(held.accounts, dialect, time.time() if now is None else now) if held.accounts else []

    def follow(self, keys: Mapping[str, Limits | None], personas: Mapping[str, Limits] | None = None) -> None:
        """Take changed limits over into the accounts that there are, before their next request comes: what is told
        of them (metrics, alerts) follows at once. ``keys`` is by id; None: personas are as before."""
        for name, account in self._keys.items():
            own = keys.get(name)
            account.limits = self.default if own is None else own
        if personas is not None:
            for name, account in self._personas.items():
                account.limits = personas.get(name, _UNLIMITED)

    def accounts(self) -> tuple[Account, ...]:
        """Every account that was asked for since the start (for metrics: use against limit)."""
        return (*self._keys.values(), *self._personas.values())

    def _accounts(self, client: Client, persona_name: str, persona_limits: Limits | None) -> tuple[Account, ...]:
        key_limits = client.limits if client.limits is not None else self.default
        key = None if is_unlimited(key_limits) else self._account(self._keys, "key", client.id, key_limits)
        if persona_limits is None or is_unlimited(persona_limits):
            return () if key is None else (key,)
        persona = self._account(self._personas, "persona", persona_name, persona_limits)
        return (persona,) if key is None else (key, persona)

    def _account(self, known: dict[str, Account], scope: str, name: str, limits: Limits) -> Account:
        account = known.get(name)
        if account is None:
            account = known[name] = Account(scope, name, limits)
            if self.history is not None:
                self.history(account)
        elif account.limits is not limits:
            account.limits = limits  # a reload or a changed key: what was used stays
        return account

    def _is_retry(self, key: tuple[str, str], now: float, claimed: bool) -> bool:
        seen = self._seen.get(key)
        return claimed and seen is not None and now - seen[0] < RETRY_SECONDS and seen[1] < MAX_RETRIES

    def _remember(self, key: tuple[str, str], now: float, is_retry: bool) -> tuple[str, str] | None:
        if is_retry:
            self._seen[key][1] += 1
            return None
        self._seen[key] = [now, 0]
        if len(self._seen) > _MAX_SEEN:
            del self._seen[next(iter(self._seen))]
        return key


def dearest(price: Price, tokens: int, output: int | None, images: int) -> float:
    """The most that a request with these estimates can cost."""
    if output is None:
        return tokens * max(price.input, price.output, price.cached or 0.0) / 1e6 + images * price.image
    return price.of(tokens - output, 0, output, images)
