"""The page that Prometheus reads: text format 0.0.4, or OpenMetrics 1.0 with exemplars."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from lmtower.telemetry import families, process
from lmtower.telemetry.families import OUTCOMES, TOOL_RESULTS, Family
from lmtower.telemetry.series import CacheSplit, EndUser, Finished, Series
from lmtower.telemetry.state import CIRCUITS, ENGINE_CONDITIONS, TowerState

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_UNSAFE_IN_EXEMPLAR = str.maketrans(dict.fromkeys('"\\\n{},#=', "_"))  # escapes there trip some parsers
_MAX_EXEMPLAR_ID = 96  # "The combined length of the label names and values ... MUST NOT exceed 128 UTF-8 characters"

Key = tuple[str, str, str, str]
Sample = tuple[tuple[str, ...], float]


def wants_openmetrics(accept: str) -> bool:
    """Whether a scraper's Accept header names OpenMetrics."""
    return "application/openmetrics-text" in accept


def content_type(openmetrics: bool) -> str:
    """Value of the Content-Type header."""
    if openmetrics:
        return "application/openmetrics-text; version=1.0.0; charset=utf-8"
    return "text/plain; version=0.0.4; charset=utf-8"


def label_text(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    """``persona="a",client="b"``, escaped."""
    return ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in zip(names, values, strict=True))


@dataclass(frozen=True, slots=True)
class OwnGauges:
    """What the metrics know of themselves."""

    version: str
    named_clients: int
    last_render_seconds: float


class Page:
    """One rendering in one of the two formats."""

    def __init__(self, openmetrics: bool) -> None:
        self.openmetrics = openmetrics

    def parts(
        self,
        series: list[Series],
        end_users: Mapping[tuple[str, str], EndUser],
        splits: Mapping[tuple[str, str], CacheSplit],
        events: Mapping[Family, Mapping[tuple[str, ...], int]],
        state: TowerState,
        own: OwnGauges,
        named: Collection[str],
    ) -> Iterator[str]:
        """The page, one family after the other."""
        labels = [label_text(families.REQUEST, one.key) for one in series]
        yield from self._request_counters(series, labels)
        for family, read in _END_USERS:
            yield self._samples(family, (row for who, one in end_users.items() for row in read(who, one)))
        yield from self._histograms(series, labels)
        yield self._cache_split(splits)
        expected = _expected_events(state, named, sorted({(one.key[1], one.key[0], one.key[2]) for one in series}))
        for family, values in events.items():
            zeros = dict.fromkeys(expected.get(family, ()), 0)
            yield self._samples(family, sorted({**zeros, **values}.items()))
        for family, rows in _gauges(state, own, named):
            yield self._samples(family, rows)
        for name, kind, help, value in process.samples():
            yield self._samples(Family(name, kind, help), [((), value)])
        if self.openmetrics:
            yield "# EOF\n"

    def _head(self, family: Family) -> str:
        name = family.name
        if family.kind == "counter" and not self.openmetrics:
            name += "_total"
        return f"# HELP {name} {family.help}\n# TYPE {name} {family.kind}\n"

    def _samples(self, family: Family, rows: Iterable[Sample]) -> str:
        name = family.name + "_total" if family.kind == "counter" else family.name
        lines = [self._head(family)]
        for values, value in rows:
            labels = label_text(family.labels, values)
            lines.append(f"{name}{{{labels}}} {value}\n" if labels else f"{name} {value}\n")
        return "".join(lines) if len(lines) > 1 else ""

    def _request_counters(self, series: list[Series], labels: list[str]) -> Iterator[str]:
        name = f"{families.REQUESTS.name}_total"
        lines = [self._head(families.REQUESTS)]
        for one, text in zip(series, labels, strict=True):
            for outcome, value in zip(OUTCOMES, one.outcomes, strict=True):
                lines.append(f'{name}{{{text},outcome="{outcome}"}} {value}\n')
        yield "".join(lines)
        name = f"{families.TOOL_CALLS.name}_total"
        lines = [self._head(families.TOOL_CALLS)]
        for one, text in zip(series, labels, strict=True):
            for result, value in zip(TOOL_RESULTS, one.tools or (), strict=False):
                lines.append(f'{name}{{{text},result="{result}"}} {value}\n')
        yield "".join(lines)
        for family, read in _COUNTERS:
            name = f"{family.name}_total"
            lines = [self._head(family)]
            lines += [f"{name}{{{text}}} {read(one)}\n" for one, text in zip(series, labels, strict=True)]
            yield "".join(lines)

    def _histograms(self, series: list[Series], labels: list[str]) -> Iterator[str]:
        for family, read, value_of in _HISTOGRAMS:
            lines = [self._head(family)]
            for one, text in zip(series, labels, strict=True):
                counts, total, last = read(one)
                lines.append(self._histogram(family, text, counts, total, last, value_of))
            yield "".join(lines)

    def _cache_split(self, splits: Mapping[tuple[str, str], CacheSplit]) -> str:
        family = families.TTFT_BY_CACHE
        lines = [self._head(family)]
        for (persona, engine), split in splits.items():
            for cache, counts, total in (("warm", split.warm, split.warm_sum), ("cold", split.cold, split.cold_sum)):
                labels = label_text(family.labels, (persona, engine, cache))
                lines.append(self._histogram(family, labels, counts, total, None, _no_value))
        return "".join(lines)

    def _histogram(
        self,
        family: Family,
        labels: str,
        counts: list[int],
        total: float,
        last: list[Finished | None] | None,
        value_of: Callable[[Finished], float],
    ) -> str:
        name, running, lines = family.name, 0, []
        bounds = _bounds(family)
        exemplars = last if self.openmetrics else None
        for index, count in enumerate(counts):
            running += count
            record = exemplars[index] if exemplars else None
            tail = _exemplar(record, value_of(record)) if record is not None else ""
            lines.append(f'{name}_bucket{{{labels},le="{bounds[index]}"}} {running}{tail}\n')
        lines.append(f"{name}_sum{{{labels}}} {total}\n{name}_count{{{labels}}} {running}\n")
        return "".join(lines)


def _bounds(family: Family) -> list[str]:
    return [*map(str, family.buckets), "+Inf"]


def _exemplar(record: Finished, value: float) -> str:
    request_id = record.request_id[:_MAX_EXEMPLAR_ID].translate(_UNSAFE_IN_EXEMPLAR)
    return f' # {{request_id="{request_id}"}} {value} {record.time:.3f}'


def _no_value(record: Finished) -> float:
    return 0.0


_COUNTERS: tuple[tuple[Family, Callable[[Series], float]], ...] = (
    (families.TOKENS[0], lambda one: one.input_tokens),
    (families.TOKENS[1], lambda one: one.cached_tokens),
    (families.TOKENS[2], lambda one: one.image_tokens),
    (families.TOKENS[3], lambda one: one.output_tokens),
    (families.TOKENS[4], lambda one: one.reasoning_tokens),
    (families.IMAGES, lambda one: one.images),
    (families.RETRIED, lambda one: one.retried),
    (families.COLD, lambda one: one.cold),
    (families.WITHIN_TARGET, lambda one: one.within_target),
    (families.COST, lambda one: one.cost),
)


def _end_user_tokens(who: tuple[str, str], one: EndUser) -> list[Sample]:
    kinds = (("input", one.input_tokens), ("cached", one.cached_tokens), ("image", one.image_tokens))
    return [((*who, kind), value) for kind, value in (*kinds, ("output", one.output_tokens))]


_END_USERS: tuple[tuple[Family, Callable[[tuple[str, str], EndUser], list[Sample]]], ...] = (
    (families.END_USER_REQUESTS, lambda who, one: [(who, one.requests)]),
    (families.END_USER_TOKENS, _end_user_tokens),
    (families.END_USER_IMAGES, lambda who, one: [(who, one.images)]),
    (families.END_USER_COST, lambda who, one: [(who, one.cost)]),
)

_Read = Callable[[Series], tuple[list[int], float, list[Finished | None] | None]]
_HISTOGRAMS: tuple[tuple[Family, _Read, Callable[[Finished], float]], ...] = (
    (families.QUEUE, lambda one: (one.queue, one.queue_sum, one.queue_last), lambda record: record.queue_seconds),
    (families.TTFT, lambda one: (one.ttft, one.ttft_sum, one.ttft_last), lambda record: record.ttft_seconds or 0.0),
    (families.INTER_TOKEN, lambda one: (one.inter_token_counts, one.inter_token_sum, None), _no_value),
    (
        families.DURATION,
        lambda one: (one.duration, one.duration_sum, one.duration_last),
        lambda record: record.duration_seconds,
    ),
)


def _expected_events(
    state: TowerState, named: Collection[str], whose: Collection[tuple[str, str, str]]
) -> dict[Family, list[tuple[str, ...]]]:
    """Counters that are shown as 0 before the first event, because ``increase()`` cannot see a series begin at 1."""
    return {
        families.AUTH_FAILURES: [(reason,) for reason in families.AUTH_REASONS],
        families.RELOADS: [(result,) for result in families.RELOAD_RESULTS],
        families.UPSTREAM_CANCELLED: list(whose),
        families.UPSTREAM_RETRIES: [(*one, why) for one in whose for why in families.RETRY_REASONS],
        families.LIMIT_REFUSALS: [(one.client, one.limit) for one in state.budgets if one.client in named],
    }


def _gauges(state: TowerState, own: OwnGauges, named: Collection[str]) -> Iterator[tuple[Family, list[Sample]]]:
    yield from _engine_gauges(state)
    yield families.PERSONA_INFO, [((one.persona, one.engine, one.lane), 1) for one in state.personas]
    yield (
        families.PERSONA_TARGET,
        [((one.persona,), one.ttft_target_seconds) for one in state.personas if one.ttft_target_seconds is not None],
    )
    yield (
        families.BUDGET_USED,
        [
            ((one.client, one.limit), one.used_ratio)
            for one in state.budgets
            if one.client in named or one.client.startswith("persona:")
        ],
    )
    yield families.CLOUD_PRICE, [((kind,), price) for kind, price in state.cloud_price.items()]
    yield families.OPEN_STREAMS, [((), state.open_streams)]
    yield families.CONNECTIONS, [((), state.connections)]
    yield families.LOOP_LAG, [((), state.event_loop_lag_seconds)]
    yield families.JOURNAL_LAG, [((), state.journal_lag_seconds)]
    yield families.JOURNAL_PENDING, [((), state.journal_pending_records)]
    yield families.SNAPSHOT_VERSION, [((), state.snapshot_version)]
    yield families.SNAPSHOT_LOADED, [((), state.snapshot_loaded_at)]
    yield families.RELOAD_FAILED, [((), int(state.reload_failed))]
    expires = state.certificate_expires_at
    yield families.CERTIFICATE, [((), expires)] if expires is not None else []
    yield families.BUILD_INFO, [((own.version,), 1)]
    yield families.NAMED_CLIENTS, [((), own.named_clients)]
    yield families.SCRAPE_SECONDS, [((), own.last_render_seconds)]


def _engine_gauges(state: TowerState) -> Iterator[tuple[Family, list[Sample]]]:
    engines = state.engines
    yield (
        families.ENGINE_STATE,
        [((one.engine, name), int(name == one.condition)) for one in engines for name in ENGINE_CONDITIONS],
    )
    yield families.ENGINE_READY, [((one.engine,), one.ready_seconds) for one in engines]
    yield families.ENGINE_SLOTS, [((one.engine,), one.slots) for one in engines]
    yield families.ENGINE_IN_FLIGHT, [((one.engine,), one.in_flight) for one in engines]
    yield families.ENGINE_QUEUED, [((one.engine, lane), n) for one in engines for lane, n in one.queued.items()]
    yield (
        families.QUEUE_REFUSALS,
        [((one.engine, lane, why), n) for one in engines for (lane, why), n in one.refusals.items()],
    )
    yield families.ENGINE_HELD, [((one.engine, lane), 1) for one in engines for lane in sorted(one.held)]
    replicas = [(one.engine, upstream) for one in engines for upstream in one.upstreams]
    yield families.UPSTREAM_HEALTHY, [((engine, up.replica), int(up.healthy)) for engine, up in replicas]
    yield families.UPSTREAM_CIRCUIT, [((engine, up.replica), CIRCUITS.index(up.circuit)) for engine, up in replicas]
