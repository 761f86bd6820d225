"""Numbers into words, samples, charts and rows: everything of the console that needs no server."""

from __future__ import annotations

from typing import Any

import pytest

from lmtower.config.types import Persona, Price
from lmtower.console import charts, history, trial, words
from lmtower.console.observed import hit_rate, observations
from lmtower.console.pages import clients, overview, personas, requests, stores
from lmtower.console.picture import engine_rows, node_rows
from lmtower.console.samples import Recent, Sample, between, parse, quantile, sample
from tests.console.support import PLAN

PAGE = """# TYPE lmtower_requests_total counter
lmtower_requests_total{persona="a",client="x \\"y\\"",outcome="ok"} 3
lmtower_requests_total{persona="a",client="z",outcome="error"} 1
lmtower_input_tokens_total{persona="a"} 100
lmtower_cached_tokens_total{persona="a"} 64
lmtower_output_tokens_total{persona="a"} 20.0
lmtower_ttft_seconds_bucket{persona="a",le="0.1"} 2
lmtower_ttft_seconds_bucket{persona="a",le="0.2"} 4
lmtower_ttft_seconds_bucket{persona="a",le="+Inf"} 4
lmtower_budget_used_ratio{client="frigate",limit="tokens_per_day"} 0.85
lmtower_budget_used_ratio{client="idle",limit="tokens_per_day"} 0
lmtower_certificate_expiry_timestamp_seconds 1000000
nonsense
"""
STATUS: dict[str, Any] = {
    "engines": [
        {"name": "big", "state": "ready", "slots": 4, "in_flight": 1, "queued": {"default": 2}, "upstreams": []},
        {"name": "eyes", "state": "failed", "slots": 2, "in_flight": 0, "queued": {"default": 0}, "upstreams": []},
    ]
}


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (words.size(737280000), "703 MiB"),
        (words.size(12 << 30), "12.0 GiB"),
        (words.size(512), "512 B"),
        (words.size(None), "–"),
        (words.count(0), "0"),
        (words.count(1234), "1,234"),
        (words.count(45_678), "45.7 k"),
        (words.count(1_234_567), "1.23 M"),
        (words.count(0.256), "0.26"),
        (words.seconds(0.0), "0 ms"),
        (words.seconds(0.0001), "< 1 ms"),
        (words.seconds(0.0123), "12 ms"),
        (words.seconds(1.25), "1.2 s"),
        (words.seconds(59.7), "1 min"),
        (words.seconds(75), "1 min 15 s"),
        (words.seconds(7300), "2 h 1 min"),
        (words.seconds(300_000), "3 days"),
        (words.percent(0.634), "63 %"),
        (words.percent(None), "–"),
        (words.money(12.5), "12.50"),
        (words.money(0), "–"),
        (words.moment(0), "1970-01-01 00:00 UTC"),
        (words.clock(3661), "01:01:01"),
        (words.ago(0, 90), "1 min ago"),
        (words.ago(None, 90), "–"),
    ],
)
def test_number_is_said_as_people_say_it(made: str, expected: str) -> None:
    """Units and rounding of every kind of number."""
    assert made == expected


def test_metrics_page_is_read_with_escaped_labels() -> None:
    """Comments and lines that are none are passed over."""
    found = list(parse(PAGE))
    assert found[0] == ("lmtower_requests_total", {"persona": "a", "client": 'x "y"', "outcome": "ok"}, 3.0)
    assert len(found) == 11


def test_sample_adds_up_and_counts_failures() -> None:
    """One look: sums over personas and clients, failures apart, what is queued."""
    found = sample(10.0, STATUS, PAGE)
    assert found.counters == {
        "requests": 4, "failed": 1, "refused": 0, "input_tokens": 100, "cached_tokens": 64, "output_tokens": 20
    }  # fmt: skip
    assert (found.in_flight, found.queued, found.ttft[0.1]) == (1, 2, 2)


def test_rates_survive_a_restart_of_the_gateway() -> None:
    """A counter that fell counts from zero."""
    before = Sample(0.0, {"requests": 90.0, "failed": 0.0, **_tokens(500)}, {})
    now = Sample(10.0, {"requests": 5.0, "failed": 0.0, **_tokens(40)}, {})
    found = between(before, now)
    assert (found.requests, found.per_second("requests"), found.hit_rate) == (5, 0.5, 1.0)


def _tokens(number: float) -> dict[str, float]:
    return {"input_tokens": number, "cached_tokens": number, "output_tokens": number}


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({}, 0.5, None),
        ({1.0: 0.0, float("inf"): 0.0}, 0.5, None),
        ({0.1: 2.0, 0.2: 4.0, float("inf"): 4.0}, 0.5, 0.1),
        ({0.1: 0.0, 0.2: 4.0, float("inf"): 4.0}, 0.5, 0.15),
        ({0.1: 0.0, float("inf"): 4.0}, 0.5, 0.1),
    ],
)
def test_quantile_is_interpolated_as_prometheus_does(buckets: Any, share: float, expected: float | None) -> None:
    """Inside a bucket evenly; beyond the last bound that bound."""
    found = quantile(buckets, share)
    assert found == (expected if expected is None else pytest.approx(expected))


def test_recent_keeps_a_quarter_of_an_hour() -> None:
    """Older samples go; a window covers what there is; steps are even."""
    recent = Recent(keep_seconds=100)
    for at in range(0, 301, 2):
        recent.add(Sample(float(at), {"requests": float(at), "failed": 0.0, **_tokens(0)}, {}))
    window = recent.window(20)
    assert window is not None
    assert (window.seconds, window.requests) == (20, 20)
    times, steps = recent.steps(points=10)
    assert (times[0], len(times), {step.requests for step in steps}) == (210, 10, {10})


def test_recent_has_no_window_before_two_samples() -> None:
    """One look makes no rate."""
    recent = Recent()
    recent.add(sample(1.0, STATUS, PAGE))
    assert (recent.window(60), recent.steps()[0]) == (None, [])


def test_tiles_name_what_is_wrong() -> None:
    """A failed engine is red and named; waiting requests are amber."""
    tiles = {tile["name"]: tile for tile in overview.tiles(STATUS, None)}
    assert (tiles["Engines ready"]["value"], tiles["Engines ready"]["note"]) == ("1 of 2", "eyes failed")
    assert (tiles["Engines ready"]["mood"], tiles["In flight"]["mood"]) == ("bad", "warn")


def test_what_runs_out_is_ordered_by_how_near_it_is() -> None:
    """Budgets in use and a certificate that ends; budgets that nobody touched are not shown."""
    rows = overview.run_out(PAGE, now=1_000_000 - 86_400)
    assert [(row["name"], row["warn"]) for row in rows] == [
        ("TLS certificate", True),
        ("frigate: tokens per day", True),
    ]


def test_chart_is_drawn_without_style_attributes_and_says_its_latest_value() -> None:
    """The content security policy allows no inline style; gaps stay gaps; names are escaped."""
    line = charts.Line('<b>"x"', [1.0, None, 3.0])
    svg = str(charts.chart([0, 1, 2], [line], words.count, words.clock, label="a"))
    assert "style=" not in svg
    assert "<b>" not in svg
    assert svg.count('class="line s1"') == 2
    assert "3" in svg.partition("aria-label=")[2].partition(">")[0]


@pytest.mark.parametrize(
    ("most", "top"), [(0.0, 1.0), (0.7, 0.8), (1.0, 1.0), (12.0, 15.0), (99.0, 100.0), (250.0, 300.0)]
)
def test_top_of_a_chart_is_round_and_above_everything(most: float, top: float) -> None:
    """A scale that a person reads at a glance."""
    assert charts.top_of([charts.Line("x", [0.0, None, most])]) == pytest.approx(top)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"queue_seconds": 1.0, "ttft_seconds": 3.0, "duration_seconds": 10.0},
            {"queue": 1.0, "prefill": 2.0, "decode": 7.0},
        ),
        ({"queue_seconds": 1.0, "duration_seconds": 4.0}, {"queue": 1.0, "engine": 3.0}),
        ({"queue_seconds": 5.0, "duration_seconds": 4.0}, {"queue": 4.0, "engine": 0.0}),
        ({}, {"queue": 0.0, "engine": 0.0}),
    ],
)
def test_phases_add_up_to_the_whole_request(record: Any, expected: dict[str, float]) -> None:
    """Queue, prefill, decode; without a stream the engine's part is one piece."""
    assert {part.name: part.size for part in requests.phases(record)} == expected


def test_requests_are_filtered_and_share_one_scale() -> None:
    """The ledger leaves ``ok`` out of its records; the filter knows."""
    records = [
        {"request_id": "a", "time": 0.0, "persona": "fast", "duration_seconds": 2.0},
        {"request_id": "b", "time": 0.0, "persona": "plan", "duration_seconds": 1.0, "outcome": "error"},
    ]
    rows = requests.rows(records, {"persona": "", "client": "", "outcome": "ok"}, 10, 1.0)
    assert [row["id"] for row in rows] == ["a"]
    assert requests.choices(records, "outcome") == ["error", "ok"]


def test_form_becomes_a_key_with_limits() -> None:
    """Empty fields are no limits, and take one away from a key that has it; a key is valid until the day is over."""
    form = {"name": [" frigate "], "personas": ["eyes"], "tokens_per_day": ["1000"], "expires": ["1970-01-02"]}
    made = {"name": "frigate", "personas": ["eyes"], "expires_at": 172_799.0}
    limits = {**dict.fromkeys(name for name, _, _ in clients.LIMITS), "tokens_per_day": 1000}
    assert clients.new_key(form) == {**made, "limits": limits}
    assert clients.new_key({"name": ["x"]}) == {"name": "x"}
    assert clients.changed_key(form) == {**made, "limits": limits}
    assert clients.changed_key({"name": ["x"]}) == {"name": "x", "personas": None, "limits": None, "expires_at": None}


@pytest.mark.parametrize(
    ("form", "words_of_it"),
    [
        ({}, "A client needs a name."),
        ({"name": ["x"], "parallel": ["many"]}, "At the same time: 'many' is not a number."),
        ({"name": ["x"], "images_per_day": ["-1"]}, "Images per day: -1 is not a limit"),
        ({"name": ["x"], "money_per_month": ["nan"]}, "Money per month: nan is not a limit"),
        ({"name": ["x"], "expires": ["soon"]}, "Valid until: 'soon' is not a date."),
    ],
)
def test_wrong_form_is_refused_in_words(form: dict[str, list[str]], words_of_it: str) -> None:
    """Before the tower is asked."""
    with pytest.raises(ValueError, match=words_of_it):
        clients.new_key(form)


def test_sums_by_end_user_leave_out_nobody_but_the_unnamed() -> None:
    """What one key used, by the people behind it."""
    used = {"requests": 1, "input_tokens": 5, "cached_tokens": 0, "output_tokens": 1, "images": 2, "cost": 0.5}
    rows = [{"end_user": who, **used} for who in ("ann", "bo", "ann", "")]
    found = clients.sums_by("end_user", rows)
    assert [(row["client"], row["requests"], row["images"]) for row in found] == [
        ("ann", 2, 4),
        ("bo", 1, 2),
        ("", 1, 2),
    ]
    assert [row["client"] for row in clients._end_users(rows)] == ["ann", "bo"]


def test_limits_are_said_as_people_say_them() -> None:
    """Units, and no word for what is not limited."""
    said = words.limits({"tokens_per_day": 2_000_000, "money_per_month": 5.0, "parallel": 4})
    assert said == ["2 M tokens a day", "a budget of 5.00 a month", "4 at a time"]
    assert words.limits(None) == []


def test_engines_that_embed_are_tried_as_such() -> None:
    """The planner knows which engine embeds, whatever the persona is called."""
    persona = Persona(engine="words")
    assert trial.kind_of("search", persona) == "chat"
    assert trial.kind_of("search", persona, {"words"}) == "embedding"
    assert trial.kind_of("rerank-words", persona, {"words"}) == "rerank"


def test_money_saved_is_the_cloud_price_less_our_own() -> None:
    """Cached tokens at their own price; no tile without a price."""
    total = {"input_tokens": 2_000_000, "cached_tokens": 1_000_000, "output_tokens": 100_000, "images": 0, "cost": 1.0}
    tile = overview.saved({"total": total}, Price(input=3, cached=0.3, output=15))
    assert tile is not None
    assert tile["value"] == "3.80"
    assert overview.saved({"total": total}, None) is None


def test_csv_disarms_formulas() -> None:
    """A client's name is no formula in somebody's spreadsheet."""
    text = clients.as_csv([{"client": "=HYPERLINK(1)", "requests": 2}])
    assert text.splitlines() == ["client,requests", "'=HYPERLINK(1),2"]
    assert clients.as_csv([]) == ""


def test_usage_by_day_has_a_column_for_every_day() -> None:
    """Days without use are there, too."""
    row = {"day": "1970-01-31", "requests": 2, "input_tokens": 5, "output_tokens": 6}
    plots = clients.by_day([row], now=30 * 86_400)
    assert [(plot["name"], plot["most"]) for plot in plots] == [("Requests", 2), ("Tokens", 11)]
    assert str(plots[0]["svg"]).count("<rect") == 30


def test_observed_numbers_of_replicas_are_added_up() -> None:
    """Counts add up, of shares the largest counts; the node's agent speaks for the node."""
    engine, node = {"engine": "big", "job": "vllm"}, {"node": "spark"}
    pages = [
        (engine, "vllm:kv_cache_usage_perc 0.5\nvllm:num_requests_running 2\n"),
        (engine, "vllm:kv_cache_usage_perc 0.7\nvllm:num_requests_running 1\n"),
        (node, "lmtower_node_memory_total_bytes 100\nlmtower_node_memory_available_bytes 40\n"),
        (node, 'lmtower_node_gpu_process_memory_bytes{gpu="0",process="big"} 50\n'),
    ]
    found = observations(pages)
    assert found.engines == {"big": {"kv_cache_used": 0.7, "running": 3}}
    assert found.memory == {("spark", "big"): 50}
    rows = node_rows(PLAN, found)
    assert rows[0]["seen"]["text"] == "60 B in use, 40 B available"


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({}, None),
        ({"prefix_hits": 30.0, "prefix_queries": 40.0}, 0.75),
        ({"prefix_hits": 30.0, "prefix_computed": 10.0}, 0.75),
    ],
)
def test_hit_rate_of_an_engine_is_its_own(numbers: dict[str, float], expected: float | None) -> None:
    """vLLM counts all prompt tokens, llama.cpp those that it computed."""
    assert hit_rate(numbers) == expected


def test_engine_without_a_plan_is_still_shown() -> None:
    """An engine that somebody else runs has state and slots, nothing planned and nothing invented."""
    rows = engine_rows(STATUS, None, observations([]), {"eyes"})
    assert [(row["name"], row["busy"], row["waiting"], row["planned"]) for row in rows] == [
        ("big", False, 2, None),
        ("eyes", True, 0, None),
    ]
    assert node_rows(None, observations([])) == []


def test_rule_is_said_as_text_whatever_its_shape() -> None:
    """The explanation's rules are pairs of field and reason."""
    assert personas._rules({"rules": [["temperature", "default"], "plain"]}) == ["temperature: default", "plain"]


def test_hit_shows_where_it_stands_and_both_scores() -> None:
    """File, heading, page, offsets; meaning and words."""
    hit = {
        "filename": "a.pdf", "score": 0.9, "attributes": {"path": "docs/a.pdf"},
        "content": [{"type": "text", "text": "word " * 300}],
        "provenance": {"page": 3, "heading": "Setup", "start": 10, "end": 1500, "chunk": 1},
        "scores": {"similarity": 0.71, "words": 4.2, "rerank": None},
    }  # fmt: skip
    row = stores.hit_row(hit)
    assert (row["file"], row["where"]) == ("docs/a.pdf", "Setup · page 3 · characters 10–1,500")
    assert row["scores"] == [("meaning", "0.710"), ("words", "4.200")]
    assert row["text"].endswith(" …")


def test_history_aligns_values_and_leaves_gaps() -> None:
    """NaN and missing points are gaps."""
    answer = {"data": {"result": [{"values": [[60, "1.5"], [120, "NaN"]]}]}}
    assert history.aligned([60.0, 120.0, 180.0], answer) == [1.5, None, None]
    assert history.aligned([60.0], {"data": {"result": []}}) == [None]


def test_trial_events_become_lines_with_the_first_token_once() -> None:
    """Thinking and text apart; usage at the end; an error event is said."""
    progress = trial.Progress(10.0)
    usage = (
        '{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":8}}}'
    )
    events = [
        '{"choices":[{"delta":{"role":"assistant"}}]}',
        '{"choices":[{"delta":{"reasoning":"hm"}}]}',
        '{"choices":[{"delta":{"content":"yes"}}]}',
        usage,
        "[DONE]",
    ]
    lines = [line for at, event in enumerate(events) for line in progress.event(event, 11.0 + at)]
    assert lines == [{"ttft": 2.0}, {"thinking": "hm"}, {"text": "yes"}]
    done = progress.summary(14.0)["done"]
    assert (done["input_tokens"], done["cached_tokens"], done["output_tokens"]) == (9, 8, 3)
    assert (done["ttft"], done["tokens_per_second"]) == (2.0, 1.0)
    assert list(progress.event('{"error":{"message":"gone"}}', 15.0)) == [{"error": "gone"}]


def test_trial_request_fits_the_kind_of_persona() -> None:
    """Chat, fill-in-the-middle and embeddings have their own routes."""
    assert trial.request_of("embedding", "e", "x") == ("/v1/embeddings", {"model": "e", "input": "x"})
    path, body = trial.request_of("autocomplete", "c", "a", suffix="b", max_tokens=5)
    assert (path, body["prompt"], body["suffix"], body["max_tokens"]) == ("/v1/completions", "a", "b", 5)
    assert trial.request_of("chat", "f", "hi")[1]["messages"] == [{"role": "user", "content": "hi"}]


def test_embedding_is_said_in_words() -> None:
    """How long it is and how it begins."""
    answer = {"data": [{"embedding": [0.5] * 10}], "usage": {"prompt_tokens": 4}}
    line = trial.vector(answer, 0.2)
    assert line["text"].startswith("10 numbers: [0.500, ")
    assert line["done"]["input_tokens"] == 4
