"""The page itself: both formats, gauges, exemplars, and the judgement of promtool."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from lmtower.telemetry import (
    BudgetState,
    EngineState,
    Metrics,
    PersonaState,
    TowerState,
    UpstreamState,
    families,
)
from tests.telemetry.records import Record

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5"

STATE = TowerState(
    engines=(
        EngineState(
            "nemotron",
            "ready",
            slots=4,
            in_flight=2,
            queued={"interactive": 0, "batch": 7},
            held=frozenset({"batch"}),
            ready_seconds=12.5,
            refusals={("batch", "deadline"): 4, ("batch", "full"): 0},
            upstreams=(UpstreamState("spark", True), UpstreamState("spark2", False, "open")),
        ),
    ),
    personas=(PersonaState("nemotron-plan", "nemotron", "default", 2.0), PersonaState("fast", "nemotron", "agent")),
    budgets=(BudgetState("alice", "money_per_month", 0.8), BudgetState("nobody", "money_per_month", 0.5)),
    cloud_price={"input": 3.0, "output": 15.0},
    open_streams=3,
    snapshot_version=2,
    certificate_expires_at=1_900_000_000.0,
)


def full() -> Metrics:
    """Metrics with something in every family."""
    metrics = Metrics(state=lambda: STATE, version="1.2.3")
    metrics.finished(Record())
    metrics.finished(Record(client='we"ird\\\n', outcome="error", ttft_seconds=None, end_user="ann"))
    for family in families.EVENTS:
        metrics.count(family, *("x" for _ in family.labels))
    return metrics


def gauges() -> dict[str, float]:
    """Every gauge sample as ``name{labels}``."""
    _, body = full().render()
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in parse_text(body.decode())
        if family.type == "gauge"
        for sample in family.samples
    }


def test_text_page_holds_every_family_once() -> None:
    """Each family of the table is on the page exactly once, with its type."""
    _, body = full().render()
    found = [(family.name, family.type) for family in parse_text(body.decode())]
    assert len(found) == len(set(found))
    assert {(family.name, family.kind) for family in families.FAMILIES} <= set(found)


def test_openmetrics_page_holds_the_same_families() -> None:
    """The strict OpenMetrics parser reads the page and finds the same table."""
    content_type, body = full().render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    assert {family.name for family in families.FAMILIES} <= {one.name for one in parse_openmetrics(body.decode())}


def test_plain_accept_header_gets_the_text_format() -> None:
    """Without a wish for OpenMetrics the classic format is sent."""
    content_type, body = full().render("*/*")
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert b"# EOF" not in body
    assert b" # {" not in body


def test_exemplar_names_the_request() -> None:
    """The TTFT bucket carries the id, value and time of the last request in it."""
    _, body = full().render(OPENMETRICS)
    exemplars = [
        sample.exemplar
        for family in parse_openmetrics(body.decode())
        if family.name == "lmtower_ttft_seconds"
        for sample in family.samples
        if sample.exemplar
    ]
    assert [(one.labels, one.value, float(one.timestamp)) for one in exemplars] == [
        ({"request_id": "req-1"}, 0.3, 1_800_000_000.0)
    ]


def test_long_request_id_is_cut_to_what_openmetrics_allows() -> None:
    """A client's x-request-id cannot break the page."""
    metrics = Metrics()
    metrics.finished(Record(request_id='"' + "x" * 500 + "\n"))
    _, body = metrics.render(OPENMETRICS)
    assert any(sample.exemplar for family in parse_openmetrics(body.decode()) for sample in family.samples)


def test_label_values_are_escaped() -> None:
    """Quotes, backslashes and line breaks in a client's name come back unharmed."""
    _, body = full().render()
    clients = {sample.labels.get("client") for family in parse_text(body.decode()) for sample in family.samples}
    assert 'we"ird\\\n' in clients


@pytest.mark.parametrize(
    ("sample", "value"),
    [
        ("lmtower_engine_state[('engine', 'nemotron'), ('state', 'ready')]", 1),
        ("lmtower_engine_state[('engine', 'nemotron'), ('state', 'failed')]", 0),
        ("lmtower_engine_ready_seconds[('engine', 'nemotron')]", 12.5),
        ("lmtower_engine_queued[('engine', 'nemotron'), ('lane', 'batch')]", 7),
        ("lmtower_engine_held[('engine', 'nemotron'), ('lane', 'batch')]", 1),
        ("lmtower_upstream_healthy[('engine', 'nemotron'), ('replica', 'spark2')]", 0),
        ("lmtower_upstream_circuit[('engine', 'nemotron'), ('replica', 'spark2')]", 2),
        ("lmtower_persona_ttft_target_seconds[('persona', 'nemotron-plan')]", 2),
        ("lmtower_budget_used_ratio[('client', 'alice'), ('limit', 'money_per_month')]", 0.8),
        ("lmtower_cloud_price[('kind', 'output')]", 15),
        ("lmtower_open_streams[]", 3),
        ("lmtower_build_info[('version', '1.2.3')]", 1),
        ("lmtower_certificate_expiry_timestamp_seconds[]", 1.9e9),
    ],
)
def test_gauge_shows_the_state(sample: str, value: float) -> None:
    """What the state callback tells is on the page."""
    assert gauges()[sample] == value


def test_refusals_are_read_from_the_state() -> None:
    """The engine's admission counts; the page shows it, zeros included."""
    _, body = full().render()
    text = body.decode()
    assert 'lmtower_queue_refusals_total{engine="nemotron",lane="batch",reason="deadline"} 4' in text
    assert 'lmtower_queue_refusals_total{engine="nemotron",lane="batch",reason="full"} 0' in text


def test_known_events_are_zero_before_they_happen() -> None:
    """``increase()`` sees the first event only if there was a zero before it."""
    metrics = Metrics(state=lambda: STATE)
    metrics.finished(Record())
    _, body = metrics.render()
    whose = 'client="alice",persona="nemotron-plan",engine="nemotron"'
    for line in (
        'lmtower_auth_failures_total{reason="unknown_key"} 0',
        'lmtower_config_reloads_total{result="failed"} 0',
        f"lmtower_upstream_cancelled_total{{{whose}}} 0",
        f'lmtower_upstream_retries_total{{{whose},reason="connection"}} 0',
    ):
        assert line in body.decode()


def test_budget_of_an_unnamed_client_is_left_out() -> None:
    """Budgets obey the cardinality cap: only clients with series of their own."""
    assert not any("nobody" in name for name in gauges())


def test_empty_tower_renders() -> None:
    """The first scrape comes before the first request."""
    _, body = Metrics().render(OPENMETRICS)
    assert list(parse_openmetrics(body.decode()))


def test_parts_join_to_the_page() -> None:
    """A server may send the page family by family."""
    metrics = Metrics(state=lambda: STATE)
    metrics.finished(Record())
    _, parts = metrics.render_parts()
    pieces = list(parts)
    assert len(pieces) > 20
    assert list(parse_text("".join(pieces)))


@pytest.mark.tools
def test_promtool_accepts_the_page() -> None:
    """The linter of Prometheus has nothing to say about names, types and help texts."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian: prometheus) is not installed")
    _, body = full().render()
    done = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
