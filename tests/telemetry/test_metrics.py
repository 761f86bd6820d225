"""Counting, the cardinality cap, and the promise that counting costs microseconds."""

from __future__ import annotations

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lmtower.errors import TowerError
from lmtower.telemetry import Metrics, families
from tests.telemetry.records import Record


def values(metrics: Metrics, sample_name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """All samples of that name on the page, by their sorted labels."""
    _, body = metrics.render()
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name == sample_name
    }


def total(metrics: Metrics, sample_name: str, **labels: str) -> float:
    """Sum of the samples that have these labels."""
    return sum(value for found, value in values(metrics, sample_name).items() if labels.items() <= dict(found).items())


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_end_users_are_counted_under_their_client() -> None:
    """Two clients may have users of one name; a request that names nobody counts nobody."""
    metrics = Metrics()
    for client, user in (("webui", "ann"), ("webui", "ann"), ("webui", "bo"), ("bot", "ann"), ("bot", "")):
        metrics.finished(Record(client=client, end_user=user, images=1, image_tokens=70))
    ann = {"client": "webui", "end_user": "ann"}
    assert total(metrics, "lmtower_end_user_requests_total", **ann) == 2
    kinds = {"input": 4000, "cached": 3000, "image": 140, "output": 600}
    assert {kind: total(metrics, "lmtower_end_user_tokens_total", kind=kind, **ann) for kind in kinds} == kinds
    assert total(metrics, "lmtower_end_user_images_total", **ann) == 2
    assert total(metrics, "lmtower_end_user_cost_total", **ann) == pytest.approx(0.02)
    assert total(metrics, "lmtower_end_user_requests_total") == 4


def test_end_users_are_bounded_and_none_is_lost() -> None:
    """A client that invents a user per request fills the table once; the rest is `other`, and sums stay true."""
    metrics = Metrics(max_clients=3)
    for number in range(1000):
        metrics.finished(Record(client=f"c{number % 7}", end_user=f"user-{number}"))
    assert len(values(metrics, "lmtower_end_user_requests_total")) <= 200 + 4
    assert total(metrics, "lmtower_end_user_requests_total") == 1000
    assert total(metrics, "lmtower_end_user_requests_total", end_user="other") >= 790


def test_finished_request_counts_every_field() -> None:
    """One record adds its outcome, tokens, images, tool calls, retry and cost to its own series."""
    metrics = Metrics()
    metrics.finished(
        Record(images=2, image_tokens=700, tool_calls_repaired=3, tool_calls_rejected=1, retry=True, cost=0.25)
    )
    labels = {"persona": "nemotron-plan", "client": "alice", "engine": "nemotron", "lane": "default"}
    expected = {
        "lmtower_input_tokens_total": 2000,
        "lmtower_cached_tokens_total": 1500,
        "lmtower_image_tokens_total": 700,
        "lmtower_output_tokens_total": 300,
        "lmtower_reasoning_tokens_total": 100,
        "lmtower_images_total": 2,
        "lmtower_retried_requests_total": 1,
        "lmtower_cost_total": 0.25,
    }
    assert expected == {name: total(metrics, name, **labels) for name in expected}
    assert total(metrics, "lmtower_requests_total", outcome="ok", **labels) == 1
    assert total(metrics, "lmtower_tool_calls_total", result="valid") == 1
    assert total(metrics, "lmtower_tool_calls_total", result="repaired") == 3
    assert total(metrics, "lmtower_tool_calls_total", result="rejected") == 1


@pytest.mark.parametrize("outcome", families.OUTCOMES)
def test_outcome_is_counted_under_its_name(outcome: str) -> None:
    """Each outcome has a counter of its own, and only that one moves."""
    metrics = Metrics()
    metrics.finished(Record(outcome=outcome))
    assert total(metrics, "lmtower_requests_total", outcome=outcome) == 1
    assert total(metrics, "lmtower_requests_total") == 1


def test_unknown_outcome_counts_as_error() -> None:
    """An outcome that this version does not know is not lost."""
    metrics = Metrics()
    metrics.finished(Record(outcome="exploded"))
    assert total(metrics, "lmtower_requests_total", outcome="error") == 1


def test_missing_ttft_leaves_the_histogram_alone() -> None:
    """A refused request has no first token and does not pull the TTFT down."""
    metrics = Metrics()
    metrics.finished(Record(outcome="refused", ttft_seconds=None))
    assert total(metrics, "lmtower_ttft_seconds_count") == 0
    assert total(metrics, "lmtower_request_seconds_count") == 1


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0.0, "0.01"), (0.01, "0.01"), (0.0100001, "0.025"), (160.0, "160.0"), (161.0, "+Inf")]
)
def test_histogram_bucket_bounds_are_inclusive(seconds: float, bucket: str) -> None:
    """``le`` means less or equal, and what is above the last bound lands in +Inf."""
    metrics = Metrics()
    metrics.finished(Record(ttft_seconds=seconds))
    filled = [
        dict(labels)["le"] for labels, value in values(metrics, "lmtower_ttft_seconds_bucket").items() if value == 1
    ]
    assert filled[0] == bucket


def test_inter_token_times_are_counted_on_the_kept_series() -> None:
    """A stream keeps its series and counts chunks on it."""
    metrics = Metrics()
    series = metrics.series("nemotron-plan", "alice", "nemotron", "default")
    for seconds in (0.02, 0.03, 0.5):
        series.inter_token(seconds)
    assert total(metrics, "lmtower_inter_token_seconds_count") == 3
    assert total(metrics, "lmtower_inter_token_seconds_sum") == pytest.approx(0.55)


@pytest.mark.parametrize(
    ("input_tokens", "cached_tokens", "cache", "cold_requests"),
    [(2000, 1000, "warm", 0), (2000, 999, "cold", 1), (1023, 0, None, 0)],
)
def test_ttft_is_split_by_cache_for_long_prompts(
    input_tokens: int, cached_tokens: int, cache: str | None, cold_requests: int
) -> None:
    """Half or more from the cache is warm; short prompts are in neither."""
    metrics = Metrics()
    metrics.finished(Record(input_tokens=input_tokens, cached_tokens=cached_tokens))
    counted = {
        dict(labels)["cache"]
        for labels, value in values(metrics, "lmtower_ttft_by_cache_seconds_count").items()
        if value
    }
    assert counted == ({cache} if cache else set())
    assert total(metrics, "lmtower_cold_requests_total") == cold_requests


def test_ttft_target_counts_only_answers_in_time() -> None:
    """Goodput counts answers under the persona's target, also for series that existed before a reload."""
    metrics = Metrics()
    metrics.finished(Record(ttft_seconds=0.3))
    metrics.set_ttft_targets({"nemotron-plan": 0.5})
    metrics.finished(Record(ttft_seconds=0.5))
    metrics.finished(Record(ttft_seconds=0.6))
    assert total(metrics, "lmtower_ttft_within_target_total") == 1


def test_clients_beyond_the_cap_are_counted_as_other() -> None:
    """Series stop growing at the cap and nothing is lost from the sum."""
    metrics = Metrics(max_clients=3)
    for number in range(50):
        metrics.finished(Record(client=f"client-{number}"))
    clients = {dict(labels)["client"] for labels in values(metrics, "lmtower_input_tokens_total")}
    assert clients == {"client-0", "client-1", "client-2", "other"}
    assert total(metrics, "lmtower_input_tokens_total") == 50 * 2000
    assert total(metrics, "lmtower_input_tokens_total", client="other") == 47 * 2000


def test_page_size_is_bounded_whatever_clients_send() -> None:
    """Ten thousand clients and personas make a page no larger than the caps allow."""
    metrics = Metrics(max_clients=5)
    for number in range(10_000):
        metrics.finished(Record(client=f"c{number}", persona=f"p{number % 3}"))
    assert len(values(metrics, "lmtower_input_tokens_total")) <= 3 * 6


def test_unbounded_persona_names_are_capped() -> None:
    """Even a caller that passes clients' text as persona cannot make series without end."""
    metrics = Metrics()
    for number in range(2_000):
        metrics.finished(Record(persona=f"invented-{number}"))
    assert len(values(metrics, "lmtower_input_tokens_total")) == 501


def test_busy_client_takes_the_place_of_a_quiet_one() -> None:
    """After an hour the busiest waiting client gets a name; its counter starts at zero."""
    clock = Clock()
    metrics = Metrics(max_clients=2, clock=clock)
    metrics.finished(Record(client="quiet"))
    for _ in range(10):
        metrics.finished(Record(client="steady"))
        metrics.finished(Record(client="newcomer"))
    clock.now = 3601
    metrics.render()
    metrics.finished(Record(client="newcomer"))
    assert total(metrics, "lmtower_input_tokens_total", client="newcomer") == 2000
    assert total(metrics, "lmtower_input_tokens_total", client="quiet") == 0
    assert total(metrics, "lmtower_input_tokens_total", client="steady") == 20_000


def test_promotion_waits_for_its_hour_and_for_twice_the_traffic() -> None:
    """Places do not flap between clients of the same size."""
    clock = Clock()
    metrics = Metrics(max_clients=1, clock=clock)
    for _ in range(10):
        metrics.finished(Record(client="first"))
    for _ in range(20):
        metrics.finished(Record(client="second"))
    clock.now = 3599
    metrics.render()
    assert total(metrics, "lmtower_input_tokens_total", client="first") == 20_000
    clock.now = 3601
    assert total(metrics, "lmtower_input_tokens_total", client="first") == 20_000
    assert total(metrics, "lmtower_input_tokens_total", client="second") == 0


def test_event_is_counted_by_its_labels() -> None:
    """Rare events have counters too."""
    metrics = Metrics()
    metrics.count(families.AUTH_FAILURES, "unknown_key")
    metrics.count(families.AUTH_FAILURES, "unknown_key", by=2)
    metrics.count(families.UPSTREAM_RETRIES, "alice", "plan", "nemotron", "connection")
    assert total(metrics, "lmtower_auth_failures_total", reason="unknown_key") == 3
    assert total(metrics, "lmtower_upstream_retries_total", engine="nemotron", reason="connection") == 1


def test_event_with_wrong_labels_is_refused() -> None:
    """A programming mistake is told at once, not at the next scrape."""
    with pytest.raises(TowerError, match="takes the labels"):
        Metrics().count(families.AUTH_FAILURES)


def test_event_of_a_client_beyond_the_cap_is_other() -> None:
    """Events obey the same cap as requests."""
    metrics = Metrics(max_clients=1)
    metrics.finished(Record(client="alice"))
    metrics.count(families.LIMIT_REFUSALS, "bob", "tokens_per_minute")
    assert total(metrics, "lmtower_limit_refusals_total", client="other") == 1


def test_recording_costs_about_two_microseconds() -> None:
    """The hot path stays cheap: best of several runs, with room for a slow machine."""
    metrics, record = Metrics(), Record()
    metrics.finished(record)
    best = min(_seconds_per_call(metrics, record) for _ in range(7))
    assert best < 6e-6


def _seconds_per_call(metrics: Metrics, record: Record, calls: int = 5_000) -> float:
    finished, started = metrics.finished, time.thread_time()
    for _ in range(calls):
        finished(record)
    return (time.thread_time() - started) / calls  # CPU time: other processes do not count
