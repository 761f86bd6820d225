"""Counters of one (persona, client, engine, lane): plain ints and lists, filled on the hot path.

A histogram here is a list of counts per bucket (the last one is ``+Inf``), a sum, and the last record that fell
into each bucket, which becomes the exemplar. Keeping the record itself costs one reference; its id and value are
read only when somebody scrapes.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Protocol

from lmtower.telemetry.families import (
    COLD_MINIMUM_TOKENS,
    DURATION_BUCKETS,
    INTER_TOKEN_BUCKETS,
    OUTCOMES,
    QUEUE_BUCKETS,
    TTFT_BUCKETS,
)


class Finished(Protocol):
    """What is read of a usage record (``ledger.UsageRecord`` has all of it and more)."""

    @property
    def request_id(self) -> str: ...
    @property
    def time(self) -> float: ...
    @property
    def client(self) -> str: ...
    @property
    def end_user(self) -> str: ...
    @property
    def persona(self) -> str: ...
    @property
    def engine(self) -> str: ...
    @property
    def lane(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def input_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def image_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...
    @property
    def reasoning_tokens(self) -> int: ...
    @property
    def images(self) -> int: ...
    @property
    def tool_calls_valid(self) -> int: ...
    @property
    def tool_calls_repaired(self) -> int: ...
    @property
    def tool_calls_retried(self) -> int: ...
    @property
    def tool_calls_rejected(self) -> int: ...
    @property
    def queue_seconds(self) -> float: ...
    @property
    def ttft_seconds(self) -> float | None: ...
    @property
    def duration_seconds(self) -> float: ...
    @property
    def retry(self) -> bool: ...
    @property
    def cost(self) -> float: ...


OUTCOME_INDEX = {outcome: index for index, outcome in enumerate(OUTCOMES)}
UNKNOWN_OUTCOME = OUTCOME_INDEX["error"]


class CacheSplit:
    """Time to first token of one (persona, engine), prompts with a warm and with a cold prefix apart."""

    __slots__ = ("cold", "cold_sum", "warm", "warm_sum")

    def __init__(self) -> None:
        self.warm = [0] * (len(TTFT_BUCKETS) + 1)
        self.warm_sum = 0.0
        self.cold = [0] * (len(TTFT_BUCKETS) + 1)
        self.cold_sum = 0.0


class EndUser:
    """What one person behind a client's key used."""

    __slots__ = ("cached_tokens", "cost", "image_tokens", "images", "input_tokens", "output_tokens", "requests")

    def __init__(self) -> None:
        self.requests = self.input_tokens = self.cached_tokens = self.image_tokens = self.output_tokens = 0
        self.images = 0
        self.cost = 0.0

    def finished(self, record: Finished) -> None:
        """Count one finished request."""
        self.requests += 1
        self.input_tokens += record.input_tokens
        self.cached_tokens += record.cached_tokens
        self.image_tokens += record.image_tokens
        self.output_tokens += record.output_tokens
        self.images += record.images
        self.cost += record.cost


class Series:
    """One line of every per-request family."""

    __slots__ = (
        "cached_tokens",
        "cold",
        "cost",
        "duration",
        "duration_last",
        "duration_sum",
        "image_tokens",
        "images",
        "input_tokens",
        "inter_token_counts",
        "inter_token_sum",
        "key",
        "outcomes",
        "output_tokens",
        "queue",
        "queue_last",
        "queue_sum",
        "reasoning_tokens",
        "retried",
        "seen",
        "split",
        "tools",
        "ttft",
        "ttft_last",
        "ttft_sum",
        "ttft_target",
        "within_target",
    )

    def __init__(self, key: tuple[str, str, str, str], split: CacheSplit, ttft_target: float | None) -> None:
        self.key = key
        self.split = split
        self.ttft_target = ttft_target
        self.seen = 0  # requests when places were last handed out
        self.outcomes = [0] * len(OUTCOMES)
        self.input_tokens = self.cached_tokens = self.image_tokens = 0
        self.output_tokens = self.reasoning_tokens = self.images = 0
        self.retried = self.cold = self.within_target = 0
        self.cost = 0.0
        self.tools: list[int] | None = None
        self.queue, self.queue_sum = [0] * (len(QUEUE_BUCKETS) + 1), 0.0
        self.ttft, self.ttft_sum = [0] * (len(TTFT_BUCKETS) + 1), 0.0
        self.duration, self.duration_sum = [0] * (len(DURATION_BUCKETS) + 1), 0.0
        self.inter_token_counts, self.inter_token_sum = [0] * (len(INTER_TOKEN_BUCKETS) + 1), 0.0
        self.queue_last: list[Finished | None] = [None] * len(self.queue)
        self.ttft_last: list[Finished | None] = [None] * len(self.ttft)
        self.duration_last: list[Finished | None] = [None] * len(self.duration)

    def inter_token(self, seconds: float) -> None:
        """Count one stream by the mean pause between its tokens (or single pauses, as the caller likes)."""
        self.inter_token_counts[bisect_left(INTER_TOKEN_BUCKETS, seconds)] += 1
        self.inter_token_sum += seconds

    def finished(self, record: Finished) -> None:
        """Count one finished request."""
        self.outcomes[OUTCOME_INDEX.get(record.outcome, UNKNOWN_OUTCOME)] += 1
        input_tokens, cached_tokens = record.input_tokens, record.cached_tokens
        self.input_tokens += input_tokens
        self.cached_tokens += cached_tokens
        self.output_tokens += record.output_tokens
        if record.reasoning_tokens:
            self.reasoning_tokens += record.reasoning_tokens
        if record.images:
            self.images += record.images
            self.image_tokens += record.image_tokens
        if record.retry:
            self.retried += 1
        if record.cost:
            self.cost += record.cost

        seconds = record.queue_seconds
        index = bisect_left(QUEUE_BUCKETS, seconds) if seconds else 0
        self.queue[index] += 1
        self.queue_sum += seconds
        self.queue_last[index] = record

        seconds = record.duration_seconds
        index = bisect_left(DURATION_BUCKETS, seconds)
        self.duration[index] += 1
        self.duration_sum += seconds
        self.duration_last[index] = record

        first = record.ttft_seconds
        if first is not None:
            index = bisect_left(TTFT_BUCKETS, first)
            self.ttft[index] += 1
            self.ttft_sum += first
            self.ttft_last[index] = record
            if self.ttft_target is not None and first <= self.ttft_target:
                self.within_target += 1
            if input_tokens >= COLD_MINIMUM_TOKENS:
                self._temperature(cached_tokens * 2 >= input_tokens, index, first)
        if (
            record.tool_calls_valid
            or record.tool_calls_repaired
            or record.tool_calls_retried
            or record.tool_calls_rejected
        ):
            self._tools(record)

    def _temperature(self, warm: bool, index: int, first: float) -> None:
        split = self.split
        if warm:
            split.warm[index] += 1
            split.warm_sum += first
        else:
            split.cold[index] += 1
            split.cold_sum += first
            self.cold += 1

    def _tools(self, record: Finished) -> None:
        tools = self.tools
        if tools is None:
            tools = self.tools = [0, 0, 0, 0]
        tools[0] += record.tool_calls_valid
        tools[1] += record.tool_calls_repaired
        tools[2] += record.tool_calls_retried
        tools[3] += record.tool_calls_rejected
