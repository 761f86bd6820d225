"""Prefix cache: the golden rule, made visible."""

from __future__ import annotations

from lmtower.telemetry.dashboards.panels import (
    CLIENT,
    ENGINE,
    LOW_IS_BAD_RATIO,
    PERSONA,
    RATE,
    Board,
    E,
    P,
    Panel,
    Query,
    Row,
    hit_rate,
    increase,
    rate,
)

_CACHED, _INPUT = "lmtower_cached_tokens_total", "lmtower_input_tokens_total"
_VLLM_HITS, _VLLM_QUERIES = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"
_LLAMA_HITS, _LLAMA_COMPUTED = "llamacpp:prompt_tokens_cached_total", "llamacpp:prompt_tokens_total"


def _vllm(window: str) -> str:
    return (
        f"sum by (engine) (rate({_VLLM_HITS}{{{E}}}[{window}])) / "
        f"(sum by (engine) (rate({_VLLM_QUERIES}{{{E}}}[{window}])) > 0)"
    )


def _llamacpp(window: str) -> str:
    hits, computed = f"rate({_LLAMA_HITS}{{{E}}}[{window}])", f"rate({_LLAMA_COMPUTED}{{{E}}}[{window}])"
    return f"sum by (engine) ({hits}) / (sum by (engine) ({hits} + {computed}) > 0)"


def _bars(title: str, description: str, expr: str, legend: str) -> Panel:
    """Hit rates over the range side by side."""
    query = Query(expr, legend, instant=True)
    return Panel(
        title, description, (query,), "percentunit", "bargauge", width=6, thresholds=LOW_IS_BAD_RATIO, maximum=1
    )


_RATES = Row(
    "Hit rate",
    (
        _bars(
            "As the engines count it",
            "The engines' own counters, over the range. vLLM counts every prompt token that it looked up.",
            f"{_vllm('$__range')} or {_llamacpp('$__range')}",
            "{{engine}}",
        ),
        _bars(
            "By persona, over the range",
            "Cached share of all prompt tokens. A low value for a persona with a long system prompt is a finding.",
            hit_rate("persona", increase),
            "{{persona}}",
        ),
        _bars(
            "By client, over the range",
            "A client far below the others sends prompts that begin differently each time.",
            hit_rate("client", increase),
            "{{client}}",
        ),
        Panel(
            "Tokens not computed, over the range",
            "Prompt tokens that the cache answered: prefill that never ran.",
            (Query(increase(_CACHED, P), "cached", instant=True), Query(increase(_INPUT, P), "input", instant=True)),
            "short",
            "stat",
            width=6,
        ),
        Panel(
            "Hit rate by engine",
            "From the engines' own counters.",
            (Query(f"{_vllm(RATE)} or {_llamacpp(RATE)}", "{{engine}}"),),
            "percentunit",
            maximum=1,
        ),
        Panel(
            "Hit rate by persona", "Over time.", (Query(hit_rate("persona"), "{{persona}}"),), "percentunit", maximum=1
        ),
        Panel("Hit rate by client", "Over time.", (Query(hit_rate("client"), "{{client}}"),), "percentunit", maximum=1),
    ),
)

_WHY = Row(
    "What it brings, and what breaks it",
    (
        Panel(
            "Prompt tokens: computed and cached",
            "Stacked: the whole is what clients sent.",
            (
                Query(f"{rate(_INPUT, P)} - {rate(_CACHED, P)}", "computed"),
                Query(rate(_CACHED, P), "cached"),
            ),
            "short",
            stack=True,
        ),
        Panel(
            "Time to first token: cold against warm",
            "Median for prompts of 1024 tokens or more; warm means that half or more came from the cache.",
            (
                Query(
                    "histogram_quantile(0.5, sum by (le, cache) (rate("
                    f'lmtower_ttft_by_cache_seconds_bucket{{persona=~"$persona"}}[{RATE}])))',
                    "{{cache}}",
                ),
            ),
            "s",
            empty="no prompt of 1024 tokens yet",
        ),
        Panel(
            "Prefix busters",
            "Long prompts of which less than half was cached, per minute. Who is on top here begins prompts anew: "
            "a date, an id, tools in changing order. `lmtower explain` shows what is sent.",
            (Query(f"60 * {rate('lmtower_cold_requests_total', P, 'client, persona')}", "{{client}} on {{persona}}"),),
            "short",
        ),
        Panel(
            "Snapshot version",
            "A step is a reload. If the hit rate falls at a step, the change touched a prompt.",
            (Query("max(lmtower_snapshot_version)", "version"),),
            "short",
            width=24,
            height=5,
        ),
    ),
)

PREFIX_CACHE = Board(
    "lmtower-prefix-cache",
    "lmtower / Prefix cache",
    "How much of the prompts the engines did not have to compute, and who breaks it.",
    (PERSONA, CLIENT, ENGINE),
    (_RATES, _WHY),
)
