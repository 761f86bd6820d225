"""Clients: who uses what, what it costs, how far the limits are used up."""

from __future__ import annotations

from lmtower.telemetry.dashboards.panels import (
    CLIENT,
    CLIENT_ONLY,
    HIGH_IS_BAD_RATIO,
    LOW_IS_BAD_RATIO,
    PERSONA,
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


def _by_client(title: str, metric: str, description: str, unit: str = "short") -> Panel:
    return Panel(
        title,
        description,
        (Query(f"sort_desc({increase(metric, P, 'client')})", "{{client}}", instant=True),),
        unit,
        "bargauge",
        width=6,
    )


def _by_end_user(title: str, metric: str, description: str, unit: str = "short", more: str = "") -> Panel:
    top = f"topk(20, {increase(metric, CLIENT_ONLY + more, 'client, end_user')})"
    return Panel(
        title,
        description,
        (Query(top, "{{end_user}} ({{client}})", instant=True),),
        unit,
        "bargauge",
        width=6,
        empty="no client names its users",
    )


_TOTALS = Row(
    "Over the range, by client",
    (
        _by_client("Requests", "lmtower_requests_total", "Finished requests of every outcome."),
        _by_client("Input tokens", "lmtower_input_tokens_total", "Prompt tokens, cached ones included."),
        _by_client("Output tokens", "lmtower_output_tokens_total", "Generated tokens, reasoning included."),
        _by_client("Cost", "lmtower_cost_total", "By the price tables of the personas.", "short"),
    ),
)

_TIME = Row(
    "Over time",
    (
        Panel(
            "Requests",
            "Per second.",
            (Query(rate("lmtower_requests_total", P, "client"), "{{client}}"),),
            "reqps",
            stack=True,
        ),
        Panel(
            "Tokens",
            "Input and output per second.",
            (
                Query(
                    " + ".join(rate(f"lmtower_{kind}_tokens_total", P, "client") for kind in ("input", "output")),
                    "{{client}}",
                ),
            ),
            "short",
            stack=True,
        ),
        Panel(
            "Time to first token, p95",
            "What the client feels.",
            (Query(quantile(0.95, "lmtower_ttft_seconds", P, "client"), "{{client}}"),),
            "s",
        ),
        Panel(
            "Prefix hit rate",
            "Cached share of the client's prompt tokens.",
            (Query(hit_rate("client"), "{{client}}"),),
            "percentunit",
            thresholds=LOW_IS_BAD_RATIO,
            maximum=1,
        ),
        Panel(
            "Not ok",
            "Requests per second that were cancelled, refused or failed.",
            (Query(rate("lmtower_requests_total", P + ',outcome!="ok"', "client, outcome"), "{{client}} {{outcome}}"),),
            "reqps",
        ),
        Panel(
            "Retried by the client's SDK",
            "A retry is counted once by limits; many of them mean that the client's timeout is too short.",
            (Query(rate("lmtower_retried_requests_total", P, "client"), "{{client}}"),),
            "reqps",
        ),
    ),
)

_PEOPLE = Row(
    "End users: the people behind a key",
    (
        _by_end_user("Requests", "lmtower_end_user_requests_total", "Requests of the people that the client names."),
        _by_end_user("Tokens", "lmtower_end_user_tokens_total", "Prompt and answer.", more=',kind=~"input|output"'),
        _by_end_user("Image tokens", "lmtower_end_user_tokens_total", "Who sends pictures.", more=',kind="image"'),
        _by_end_user("Cost", "lmtower_end_user_cost_total", "By the price tables of the personas.", "short"),
    ),
)

_VISION = Row(
    "Vision",
    (
        Panel(
            "Images",
            "Images per minute. Frigate's cameras are at home here.",
            (Query(f"60 * {rate('lmtower_images_total', P, 'client')}", "{{client}}"),),
            "short",
        ),
        Panel(
            "Image tokens",
            "Prompt tokens per second that were images.",
            (Query(rate("lmtower_image_tokens_total", P, "client"), "{{client}}"),),
            "short",
        ),
        Panel(
            "Image tokens, over the range",
            "By client and persona.",
            (
                Query(
                    increase("lmtower_image_tokens_total", P, "client, persona"),
                    "{{client}} on {{persona}}",
                    instant=True,
                ),
            ),
            "short",
            "bargauge",
        ),
    ),
)

_LIMITS = Row(
    "Limits",
    (
        Panel(
            "Used share of limits",
            "1 is spent: the next request is refused until the window moves on.",
            (Query(f"lmtower_budget_used_ratio{{{CLIENT_ONLY}}}", "{{client}} {{limit}}", instant=True),),
            "percentunit",
            "bargauge",
            width=12,
            thresholds=HIGH_IS_BAD_RATIO,
            maximum=1,
            empty="no limits are set",
        ),
        Panel(
            "Refused by limits",
            "Requests per minute.",
            (
                Query(
                    f"60 * {rate('lmtower_limit_refusals_total', CLIENT_ONLY, 'client, limit')}",
                    "{{client}} {{limit}}",
                ),
            ),
            "short",
            width=12,
            empty="nobody was refused",
        ),
    ),
)

CLIENTS = Board(
    "lmtower-clients",
    "lmtower / Clients",
    "Tokens, images, cost and limits per client and per end user.",
    (CLIENT, PERSONA),
    (_TOTALS, _TIME, _PEOPLE, _VISION, _LIMITS),
)
