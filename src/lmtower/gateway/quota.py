"""Limits around a request: room is reserved before the engine is touched and settled with what was really used."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Literal, TypedDict

from lmtower.config.types import Limits, Price
from lmtower.gateway import identity
from lmtower.gateway.exchange import Header
from lmtower.gateway.flow import Flow
from lmtower.ledger import Client, Ledger, LimitRefusal, Reservation, UsageRecord
from lmtower.personas import CompiledPersona
from lmtower.telemetry.families import LIMIT_REFUSALS
from lmtower.telemetry.metrics import Metrics
from lmtower.wire import top as tops
from lmtower.wire.faults import Fault
from lmtower.wire.top import Top

DEFAULT_OUTPUT_TOKENS = 1024
_SAMPLE = 512


class _Asked(TypedDict):
    client: Client
    persona_name: str
    persona_limits: Limits | None
    price: Price | None
    tokens_estimate: int
    images: int
    output_estimate: int
    retry: bool
    fingerprint: str


class Quota:
    """Holds the ledger's limits against requests."""

    def __init__(self, ledger: Ledger, metrics: Metrics) -> None:
        self._limits = ledger.limits
        self._metrics = metrics

    def is_free(self, client: Client, persona: CompiledPersona) -> bool:
        """Whether nothing is limited and nothing costs, so that nothing needs to be held."""
        return persona.price is None and self._limits.is_free(client, persona.name, persona.limits)

    async def reserve(self, flow: Flow, top: Top) -> None:
        """Hold room for the request in all its limits. Raises Fault(429) when one of them is used up."""
        asked = _asked(flow, top)
        if self._limits.shared:  # its client wants a task
            held = await asyncio.create_task(self._limits.reserve_shared(**asked))
        else:
            held = self._limits.reserve(**asked, now=flow.time)
        self._take(flow, held)

    def _take(self, flow: Flow, held: Reservation | LimitRefusal) -> None:
        assert flow.client is not None
        dialect: Literal["openai", "anthropic"] = "anthropic" if flow.dialect == "anthropic" else "openai"
        told: list[Header] = []
        if held.accounts:
            told = [(name.encode(), value.encode()) for name, value in self._limits.headers(held, dialect)]
            flow.headers += told
        if isinstance(held, LimitRefusal):
            self._metrics.count(LIMIT_REFUSALS, flow.client.name, held.reason)
            raise Fault(
                429,
                "insufficient_quota" if held.hard else "rate_limit_exceeded",
                held.message,
                retry_after=held.retry_after,
                should_retry=False if held.hard else None,
                headers=tuple(told),
            )
        flow.reservation = held
        flow.retry = held.retry

    def settle(self, flow: Flow, record: UsageRecord) -> None:
        """Book what was used; a request that never reached an engine is taken back."""
        held = flow.reservation
        if held is None:
            return
        if flow.replica:
            record.cost = self._limits.settle(
                held, record.input_tokens, record.cached_tokens, record.output_tokens, record.images
            )
        else:
            self._limits.release(held)


def _asked(flow: Flow, top: Top) -> _Asked:
    persona, engine, client = flow.persona, flow.engine, flow.client
    assert persona is not None
    assert engine is not None
    assert client is not None
    output = _largest_output(top)
    return {
        "client": client,
        "persona_name": persona.name,
        "persona_limits": persona.limits,
        "price": persona.price,
        "tokens_estimate": int(flow.prompt_bytes / engine.bytes_per_token) + flow.image_tokens + output,
        "images": flow.images,
        "output_estimate": output,
        "retry": identity.is_retry(flow.exchange.request.headers),
        "fingerprint": _fingerprint(flow),
    }


def _largest_output(top: Top) -> int:
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"):
        if name in top:
            value = tops.value(top, name)
            if isinstance(value, int) and value > 0:
                return value
    return DEFAULT_OUTPUT_TOKENS


def _fingerprint(flow: Flow) -> str:
    """What an SDK's repeat of a request has in common with it; ``""`` for clients that say nothing about repeats."""
    request = flow.exchange.request
    key = request.headers.get(b"idempotency-key")
    if key is not None:
        return key.decode("latin-1")[:128]
    if b"x-stainless-retry-count" not in request.headers:
        return ""
    body = request.body
    digest = hashlib.blake2b(body[:_SAMPLE] + body[-_SAMPLE:], digest_size=12)
    digest.update(b"%d" % len(body))
    return digest.hexdigest()
