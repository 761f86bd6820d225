"""The tower's numbers over time: metrics pages become samples, two samples become rates.

A sample is taken every few seconds from ``/admin/status`` and ``/metrics`` and kept for a quarter of an hour, so that
the console has charts without Prometheus. Counters that fell (the gateway was restarted) count from zero.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from lmtower.console.settings import Json

_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_COUNTERS = {
    "lmtower_requests_total": "requests",
    "lmtower_input_tokens_total": "input_tokens",
    "lmtower_cached_tokens_total": "cached_tokens",
    "lmtower_output_tokens_total": "output_tokens",
}
_OUTCOMES = {"error": "failed", "upstream_error": "failed", "refused": "refused"}
_BUCKET = "lmtower_ttft_seconds_bucket"

Series = tuple[str, Mapping[str, str], float]


def parse(page: str) -> Iterator[Series]:
    """(name, labels, value) of every line of a metrics page."""
    for line in page.splitlines():
        if match := _LINE.match(line):
            try:
                value = float(match[3])
            except ValueError:
                continue
            yield match[1], {name: _plain(text) for name, text in _LABEL.findall(match[2] or "")}, value


def _plain(text: str) -> str:
    return text.replace("\\n", "\n").replace('\\"', '"').replace("\\\\", "\\") if "\\" in text else text


@dataclass(frozen=True, slots=True)
class Sample:
    """The tower at one moment. ``counters`` are sums over everything; ``ttft`` counts per upper bound."""

    at: float
    counters: Mapping[str, float]
    ttft: Mapping[float, float]
    in_flight: int = 0
    queued: int = 0


def sample(at: float, status: Json, page: str) -> Sample:
    """One look."""
    counters: dict[str, float] = dict.fromkeys((*_COUNTERS.values(), *_OUTCOMES.values()), 0.0)
    ttft: dict[float, float] = {}
    for name, labels, value in parse(page):
        if field := _COUNTERS.get(name):
            counters[field] += value
            if field == "requests" and (outcome := _OUTCOMES.get(labels.get("outcome", ""))):
                counters[outcome] += value
        elif name == _BUCKET:
            bound = float(labels["le"])
            ttft[bound] = ttft.get(bound, 0.0) + value
    engines = status["engines"]
    queued = sum(sum(engine["queued"].values()) for engine in engines)
    return Sample(at, counters, ttft, sum(engine["in_flight"] for engine in engines), queued)


@dataclass(frozen=True, slots=True)
class Window:
    """What happened between two samples."""

    seconds: float
    requests: float
    failed: float
    refused: float
    input_tokens: float
    cached_tokens: float
    output_tokens: float
    ttft_p50: float | None
    ttft_p95: float | None

    @property
    def hit_rate(self) -> float | None:
        """Share of the prompt that came from the prefix cache."""
        return self.cached_tokens / self.input_tokens if self.input_tokens else None

    def per_second(self, field: str) -> float:
        """A counter's rate."""
        return float(getattr(self, field)) / self.seconds if self.seconds > 0 else 0.0


def between(before: Sample, now: Sample) -> Window:
    """The difference of two samples."""

    def grown(field: str) -> float:
        return _grown(before.counters.get(field, 0.0), now.counters.get(field, 0.0))

    buckets = {bound: _grown(before.ttft.get(bound, 0.0), value) for bound, value in now.ttft.items()}
    return Window(
        seconds=now.at - before.at,
        requests=grown("requests"),
        failed=grown("failed"),
        refused=grown("refused"),
        input_tokens=grown("input_tokens"),
        cached_tokens=grown("cached_tokens"),
        output_tokens=grown("output_tokens"),
        ttft_p50=quantile(buckets, 0.5),
        ttft_p95=quantile(buckets, 0.95),
    )


def _grown(before: float, now: float) -> float:
    return now - before if now >= before else now


def quantile(buckets: Mapping[float, float], share: float) -> float | None:
    """From cumulative counts by upper bound, as Prometheus interpolates; None without observations."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return None
    wanted, low, below = share * total, 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= wanted:
            if bound == float("inf"):
                return low
            inside = buckets[bound] - below
            return low + (bound - low) * ((wanted - below) / inside if inside else 1.0)
        low, below = bound, buckets[bound]
    return low


class Recent:
    """The latest samples, the oldest dropped."""

    def __init__(self, keep_seconds: float = 900.0) -> None:
        self.keep_seconds = keep_seconds
        self._samples: deque[Sample] = deque()

    def add(self, one: Sample) -> None:
        """Keep one more."""
        self._samples.append(one)
        while self._samples[0].at < one.at - self.keep_seconds:
            self._samples.popleft()

    @property
    def latest(self) -> Sample | None:
        """The last one."""
        return self._samples[-1] if self._samples else None

    def window(self, seconds: float) -> Window | None:
        """What happened in the last seconds; None until there are two samples."""
        if len(self._samples) < 2:
            return None
        now = self._samples[-1]
        before = next(one for one in self._samples if one.at >= now.at - seconds or one is now)
        return between(before if before is not now else self._samples[-2], now)

    def steps(self, points: int = 60) -> tuple[list[float], list[Window]]:
        """The kept time in equal steps: the end of each step, and what happened in it."""
        return windows(self._samples, self.keep_seconds / points)


def windows(samples: Iterable[Sample], step: float) -> tuple[list[float], list[Window]]:
    """Consecutive windows of about ``step`` seconds."""
    kept: list[Sample] = []
    for one in samples:
        if not kept or one.at - kept[-1].at >= step - 0.001:
            kept.append(one)
    return [one.at for one in kept[1:]], [between(a, b) for a, b in pairwise(kept)]
