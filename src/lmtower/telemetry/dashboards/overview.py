"""Overview: is it healthy, how busy is it, what did it save."""

from __future__ import annotations

from lmtower.telemetry.dashboards.panels import (
    ANY_IS_BAD,
    CLIENT,
    GREEN,
    LOW_IS_BAD_RATIO,
    NONE_IS_BAD,
    PERSONA,
    RED,
    YELLOW,
    Board,
    P,
    Panel,
    Query,
    Row,
    hit_rate,
    increase,
    quantile,
    rate,
)


def _cloud(kind: str, tokens: str) -> str:
    return f'{tokens} * on () (max(lmtower_cloud_price{{kind="{kind}"}})) / 1e6'


_INPUT = increase("lmtower_input_tokens_total", P)
_CACHED = increase("lmtower_cached_tokens_total", P)
_OUTPUT = increase("lmtower_output_tokens_total", P)
_MONEY = (
    _cloud("input", f"({_INPUT} - {_CACHED})") + " + " + _cloud("cached", _CACHED) + " + " + _cloud("output", _OUTPUT)
)

_HEALTH = Row(
    "Is it healthy?",
    (
        Panel(
            "Engines ready",
            "Engines that answer, of those that the tower file names.",
            (Query('sum(lmtower_engine_state{state="ready"})', "ready", instant=True),),
            "short",
            "stat",
            width=4,
            height=5,
            thresholds=NONE_IS_BAD,
        ),
        Panel(
            "Engines not ready",
            "Stopped, starting, draining or failed.",
            (Query('sum(lmtower_engine_state{state!="ready"})', "not ready", instant=True),),
            "short",
            "stat",
            width=4,
            height=5,
            thresholds=ANY_IS_BAD,
        ),
        Panel(
            "Requests running",
            "Requests that engines work on at this moment.",
            (Query("sum(lmtower_engine_in_flight)", "running"),),
            "short",
            "stat",
            width=4,
            height=5,
        ),
        Panel(
            "Requests waiting",
            "Requests in the gateway's queues.",
            (Query("sum(lmtower_engine_queued)", "waiting"),),
            "short",
            "stat",
            width=4,
            height=5,
            thresholds=((None, GREEN), (10, YELLOW), (50, RED)),
        ),
        Panel(
            "Prefix hit rate",
            "Share of prompt tokens that came from the prefix cache, over the range.",
            (Query(hit_rate(over=increase), "hit rate", instant=True),),
            "percentunit",
            "stat",
            width=4,
            height=5,
            thresholds=LOW_IS_BAD_RATIO,
            maximum=1,
        ),
        Panel(
            "Saved against the cloud",
            "What the same tokens would have cost at `observability.cloud_price`, over the range.",
            (Query(_MONEY, "saved", instant=True),),
            "short",
            "stat",
            width=4,
            height=5,
            empty="set observability.cloud_price",
            decimals=2,
        ),
    ),
)

_TRAFFIC = Row(
    "How busy?",
    (
        Panel(
            "Requests by outcome",
            "Finished requests per second. `refused`: limits and full queues; `upstream_error`: an engine failed.",
            (Query(rate("lmtower_requests_total", P, "outcome"), "{{outcome}}"),),
            "reqps",
            stack=True,
        ),
        Panel(
            "Requests by persona",
            "Who is being asked.",
            (Query(rate("lmtower_requests_total", P, "persona"), "{{persona}}"),),
            "reqps",
            stack=True,
        ),
        Panel(
            "Tokens",
            "Tokens per second: prompt tokens computed, prompt tokens from the cache, tokens generated.",
            (
                Query(
                    f"{rate('lmtower_input_tokens_total', P)} - {rate('lmtower_cached_tokens_total', P)}",
                    "input, computed",
                ),
                Query(rate("lmtower_cached_tokens_total", P), "input, cached"),
                Query(rate("lmtower_output_tokens_total", P), "output"),
                Query(rate("lmtower_reasoning_tokens_total", P), "of it reasoning"),
            ),
            "short",
        ),
    ),
)

_LATENCY = Row(
    "How fast?",
    (
        Panel(
            "Time to first token",
            "From arrival at the gateway, queue included. Points are single requests with their id.",
            (
                Query(quantile(0.5, "lmtower_ttft_seconds", P), "p50"),
                Query(quantile(0.95, "lmtower_ttft_seconds", P), "p95", exemplars=True),
            ),
            "s",
            width=6,
        ),
        Panel(
            "Inter-token latency",
            "Mean pause between two tokens of a stream. 0.05 s is 20 tokens per second.",
            (
                Query(quantile(0.5, "lmtower_inter_token_seconds", P), "p50"),
                Query(quantile(0.95, "lmtower_inter_token_seconds", P), "p95"),
            ),
            "s",
            width=6,
        ),
        Panel(
            "Queue time p95 by lane",
            "Waiting for a slot.",
            (Query(quantile(0.95, "lmtower_queue_seconds", P, "lane"), "{{lane}}"),),
            "s",
            width=6,
        ),
        Panel(
            "Goodput by persona",
            "Share of answers whose first token came within the persona's `ttft_target`.",
            (Query('persona:lmtower_goodput:ratio_rate5m{persona=~"$persona"}', "{{persona}}"),),
            "percentunit",
            width=6,
            maximum=1,
            empty="no persona has a ttft_target",
        ),
    ),
)

_ERRORS = Row(
    "What goes wrong?",
    (
        Panel(
            "Refused before the engine",
            "Full queues, missed deadlines, held lanes; limits and budgets; missing keys.",
            (
                Query("sum by (reason) (rate(lmtower_queue_refusals_total[$__rate_interval]))", "queue: {{reason}}"),
                Query("sum by (limit) (rate(lmtower_limit_refusals_total[$__rate_interval]))", "limit: {{limit}}"),
                Query("sum by (reason) (rate(lmtower_auth_failures_total[$__rate_interval]))", "key: {{reason}}"),
            ),
            "reqps",
            width=6,
        ),
        Panel(
            "Cancelled and retried upstream",
            "Requests that the gateway cancelled at an engine because the client left, and those it sent again.",
            (
                Query(
                    "sum by (engine) (rate(lmtower_upstream_cancelled_total[$__rate_interval]))",
                    "cancelled: {{engine}}",
                ),
                Query(
                    "sum by (engine) (rate(lmtower_upstream_retries_total[$__rate_interval]))", "retried: {{engine}}"
                ),
            ),
            "reqps",
            width=6,
        ),
        Panel(
            "Tool calls by result",
            "`valid` as generated, `repaired` by the gateway, `retried` with a constraint, `rejected`.",
            (Query(rate("lmtower_tool_calls_total", P, "result"), "{{result}}"),),
            "ops",
            width=6,
            stack=True,
            empty="no tool calls yet",
        ),
        Panel(
            "Gateway",
            "Event-loop delay and age of the oldest usage record that is not in the database.",
            (
                Query("max(lmtower_event_loop_lag_seconds)", "event-loop lag"),
                Query("max(lmtower_journal_lag_seconds)", "journal lag"),
            ),
            "s",
            width=6,
        ),
    ),
)

OVERVIEW = Board(
    "lmtower-overview",
    "lmtower / Overview",
    "Is the tower healthy, who uses it, how fast is it.",
    (PERSONA, CLIENT),
    (_HEALTH, _TRAFFIC, _LATENCY, _ERRORS),
)
