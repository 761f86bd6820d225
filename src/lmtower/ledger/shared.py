"""Limits that several towers share through Redis; the scripts beside this file (``lua/``) decide in one step each.

Theory of operation. The state of an account lives in Redis: windows of 60 slices, what is held by running requests,
what was spent. ``reserve_shared`` asks one script to check all accounts of a request and hold its estimate; so it is
exact over all towers. ``settle`` and ``release`` return at once and tell Redis in the background; what could not be
told is told again, and counted once. Every tower shows Redis that it lives; what a dead one held is dropped after ten
seconds. Each tower also keeps its own traffic in local accounts. When Redis does not answer, those decide: limits are
then per tower, and requests go on.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec

from lmtower.config.types import Limits, Price
from lmtower.errors import LedgerError
from lmtower.ledger.accounts import Account, LimitRefusal, month_of
from lmtower.ledger.client import Client
from lmtower.ledger.headers import Dialect, limit_headers
from lmtower.ledger.limits import MAX_RETRIES, LocalLimits, Reservation, dearest
from lmtower.ledger.windows import DAY, MINUTE, SlidingWindow
from lmtower.logs import get_logger

if TYPE_CHECKING:
    from redis.asyncio import Redis

HEARTBEAT_SECONDS = 3.0
_ALIVE_SECONDS = 10
_ANSWER_SECONDS = 1.0
_CONNECTIONS = 8
_PAUSE_SECONDS = 2.0
"""After a failure Redis is left alone for so long; requests do not wait for it meanwhile."""
_MAX_UNTOLD = 100_000


class SharedReservation(Reservation):
    """A reservation that Redis holds too."""

    __slots__ = ("began", "id", "keys", "views")

    id: str
    keys: tuple[str, ...]
    began: float
    views: tuple[Account, ...]


class SharedLimits(LocalLimits):
    """Limits counted in Redis. ``now`` arguments are for tests: without them Redis' own clock counts."""

    shared = True

    def __init__(self, url: str) -> None:
        super().__init__()
        self.errors = 0
        """Calls that Redis did not answer."""
        self._url = url
        self._tower = secrets.token_hex(6)
        self._numbers = count()
        self._redis: Redis | None = None
        self._scripts: dict[str, Any] = {}
        self._paused_until = 0.0
        self._failing = False
        self._untold: dict[str, tuple[tuple[str, ...], bytes]] = {}
        self._telling: set[asyncio.Task[None]] = set()
        self._heart: asyncio.Task[None] | None = None
        self._log = get_logger()

    async def start(self) -> None:
        """Connect and begin to show that this tower lives. A Redis that is down is no error. Raises LedgerError."""
        try:
            from redis.asyncio import BlockingConnectionPool, Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError as exc:
            raise LedgerError("`redis` is set, but its client is missing: pip install 'lmtower[redis]'") from exc
        try:
            # A burst waits for one of a few connections: opening one per request takes longer than the answers.
            pool = BlockingConnectionPool.from_url(
                self._url,
                max_connections=_CONNECTIONS,
                timeout=_ANSWER_SECONDS,
                socket_timeout=_ANSWER_SECONDS,
                socket_connect_timeout=_ANSWER_SECONDS,
                retry=Retry(NoBackoff(), 1),  # once, at once: a pooled connection may be of a Redis that is gone
            )
        except ValueError as exc:
            raise LedgerError("`redis` is not a Redis URL; write redis://HOST:6379/0") from exc
        self._redis = Redis.from_pool(pool)
        for name in ("reserve", "settle", "seed"):
            script = (files("lmtower.ledger") / "lua" / f"{name}.lua").read_text("utf-8")
            self._scripts[name] = self._redis.register_script(script)
        await self._beat()
        self._heart = asyncio.create_task(self._live(), name="ledger-redis")

    async def close(self) -> None:
        """Tell what is untold, as far as Redis listens, and disconnect."""
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.gather(self._heart, return_exceptions=True)
        await asyncio.gather(*self._telling, return_exceptions=True)
        if self._redis is not None:
            await self._tell()
            await self._redis.aclose()
            self._redis = None

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
        """``LocalLimits.reserve`` over all towers."""
        accounts = self._accounts(client, persona_name, persona_limits)
        if accounts and self._redis is not None and time.monotonic() >= self._paused_until:
            money = 0.0 if price is None else dearest(price, tokens_estimate, output_estimate, images)
            keys = (
                f"lmtower:seen:{client.id}:{fingerprint}" if fingerprint else "",
                *(f"lmtower:limits:{account.scope}:{account.name}" for account in accounts),
            )
            held = f"{self._tower}:{next(self._numbers)}"
            at = time.time() if now is None else now
            ask = {
                "id": held, "tower": self._tower, "now": now or 0, "requests": 1, "tokens": tokens_estimate,
                "images": images, "money": money, "retry": retry, "max_retries": MAX_RETRIES, "month": _month(at),
                "limits": [account.limits.model_dump(exclude_none=True) for account in accounts],
            }  # fmt: skip
            reply = await self._ask(accounts, keys, msgspec.json.encode(ask))
            if reply is not None:
                return self._answer(reply, held, accounts, keys, price, tokens_estimate, images, money)
        return self.reserve(
            client, persona_name, persona_limits, price, tokens_estimate, images, now,
            output_estimate=output_estimate, retry=retry, fingerprint=fingerprint,
        )  # fmt: skip

    def settle(
        self,
        reservation: Reservation,
        input_tokens: int = 0,
        cached_tokens: int = 0,
        output_tokens: int = 0,
        images: int = 0,
        now: float | None = None,
    ) -> float:
        """As ``LocalLimits.settle``; Redis hears of it in the background."""
        first = not reservation.done
        cost = super().settle(reservation, input_tokens, cached_tokens, output_tokens, images, now)
        if first and isinstance(reservation, SharedReservation):
            self._end(reservation, input_tokens + output_tokens, images, cost, released=0, now=now)
        return cost

    def release(self, reservation: Reservation) -> None:
        """As ``LocalLimits.release``; Redis hears of it in the background."""
        first = not reservation.done
        super().release(reservation)
        if first and isinstance(reservation, SharedReservation):
            self._end(reservation, 0, 0, 0.0, released=0 if reservation.retry else 1, now=None)

    def headers(
        self, held: Reservation | LimitRefusal, dialect: Dialect = "openai", now: float | None = None
    ) -> list[tuple[str, str]]:
        """As ``LocalLimits.headers``, from what all towers used."""
        accounts = held.views if isinstance(held, SharedReservation) else held.accounts
        return limit_headers(accounts, dialect, time.time() if now is None else now) if accounts else []

    def _answer(
        self,
        reply: dict[str, Any],
        held: str,
        accounts: tuple[Account, ...],
        keys: tuple[str, ...],
        price: Price | None,
        tokens: int,
        images: int,
        money: float,
    ) -> Reservation | LimitRefusal:
        now, is_retry = float(reply["now"]), bool(reply["retry"])
        pairs = zip(accounts, reply["accounts"], strict=True)
        views = tuple(_view(account, state, now) for account, state in pairs)
        if reply["state"] == "refused":
            for view in views:
                refusal = view.refuse(now, 0 if is_retry else 1, tokens, images, money)
                if refusal is not None:
                    return replace(refusal, accounts=views)
            raise AssertionError("Redis refused what its own numbers allow")
        for view in views:
            view.hold(now, 0 if is_retry else 1, tokens, images, money)
        reservation = SharedReservation(accounts, price, tokens, images, money, is_retry)
        requests = 0 if is_retry else 1
        reservation.entries = tuple([account.hold(now, requests, tokens, images, money) for account in accounts])
        reservation.id, reservation.keys, reservation.began, reservation.views = held, keys, now, views
        return reservation

    async def _ask(self, accounts: Sequence[Account], keys: tuple[str, ...], ask: bytes) -> dict[str, Any] | None:
        """The script's reply; None: Redis did not answer."""
        while (raw := await self._call("reserve", keys, ask)) is not None:
            reply: dict[str, Any] = msgspec.json.decode(raw)
            if reply["state"] != "unseeded":
                return reply
            at = int(reply["at"])
            if await self._call("seed", (keys[at + 1],), _seed(accounts[at], float(reply["now"]))) is None:
                return None
        return None

    def _end(
        self, reservation: SharedReservation, tokens: int, images: int, cost: float, *, released: int, now: float | None
    ) -> None:
        month = _month(time.time() if now is None else now)
        told = {
            "id": reservation.id, "now": now or 0, "tokens": tokens, "images": images, "money": cost, "month": month,
            "released": released, "began": reservation.began,
        }  # fmt: skip
        if len(self._untold) < _MAX_UNTOLD:
            self._untold[reservation.id] = reservation.keys, msgspec.json.encode(told)
        if time.monotonic() >= self._paused_until:
            task = asyncio.get_running_loop().create_task(self._tell(reservation.id))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _tell(self, only: str | None = None) -> None:
        for held in [only] if only is not None else list(self._untold):
            if (untold := self._untold.get(held)) is None:
                continue
            if await self._call("settle", *untold) is None:
                return
            self._untold.pop(held, None)

    async def _live(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            await self._beat()
            await self._tell()

    async def _beat(self) -> None:
        from redis.exceptions import RedisError

        if self._redis is not None:
            try:
                await self._redis.set(f"lmtower:tower:{self._tower}", 1, ex=_ALIVE_SECONDS)
            except (RedisError, OSError) as exc:
                self._fail(exc)
            else:
                self._recover()

    async def _call(self, script: str, keys: tuple[str, ...], argument: bytes) -> Any:
        """The script's reply, or None when Redis did not answer."""
        from redis.exceptions import RedisError

        try:
            return await self._scripts[script](keys=keys, args=[argument])
        except (RedisError, OSError) as exc:
            self._fail(exc)
            return None

    def _fail(self, exc: Exception) -> None:
        self.errors += 1
        self._paused_until = time.monotonic() + _PAUSE_SECONDS
        if not self._failing:
            self._failing = True
            self._log.error("redis_not_answering", error=str(exc), consequence="limits count per tower")

    def _recover(self) -> None:
        self._paused_until = 0.0
        if self._failing:
            self._failing = False
            self._log.info("redis_answers_again")


def _month(now: float) -> str:
    return str(int(month_of(now)[0]))


def _view(account: Account, state: dict[str, Any], now: float) -> Account:
    """An account as Redis has it."""
    view = Account(account.scope, account.name, account.limits)
    windows = (view.requests_minute, view.tokens_minute, view.tokens_day, view.images_day)
    for window, name in zip(windows, ("rm", "tm", "td", "id"), strict=True):
        for ends, amount in sorted(state[name]):  # Lua's empty table arrives as {}: nothing either way
            window.add(ends, amount)
    view.running, view.held_tokens, view.held_images = (int(value) for value in state["held"][:3])
    view.held_money = float(state["held"][3])
    view.month_end = month_of(now)[1]
    view.spent = float(state["spent"])
    return view


def _seed(account: Account, now: float) -> bytes:
    def slices(window: SlidingWindow, seconds: float) -> list[tuple[int, int]]:
        return [(int(at // (seconds / 60)), int(amount)) for at, amount in window.entries() if amount]

    return msgspec.json.encode(
        {
            "rm": slices(account.requests_minute, MINUTE),
            "tm": slices(account.tokens_minute, MINUTE),
            "td": slices(account.tokens_day, DAY),
            "id": slices(account.images_day, DAY),
            "money": account.spent_in_month(now),
            "month": _month(now),
        }
    )
