"""Every metric that the gateway exports: name, kind, labels, what it means. Dashboards, rules and docs read this table.

Names of counters are written without ``_total``; the exposition adds it. Histogram buckets are chosen for
language models: autocomplete answers in tens of milliseconds, a long prefill on a desk-side box takes minutes,
and both have to stay readable on one scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

REQUEST = ("persona", "client", "engine", "lane")
OUTCOMES = ("ok", "cancelled", "error", "refused", "upstream_error")
TOOL_RESULTS = ("valid", "repaired", "retried", "rejected")

QUEUE_BUCKETS = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 2.0, 4.0, 7.0, 10.0, 20.0, 40.0, 80.0, 160.0)
INTER_TOKEN_BUCKETS = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
DURATION_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1200.0)

COLD_MINIMUM_TOKENS = 1024
"""Shorter prompts are left out of the cold/warm comparison: they rarely fill one cache block."""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family. ``buckets`` only for histograms."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _request(name: str, help: str, *more: str) -> Family:
    return Family(f"lmtower_{name}", "counter", help, (*REQUEST, *more))


def _latency(name: str, help: str, buckets: tuple[float, ...], labels: tuple[str, ...] = REQUEST) -> Family:
    return Family(f"lmtower_{name}_seconds", "histogram", help, labels, buckets)


def _gauge(name: str, help: str, *labels: str) -> Family:
    return Family(f"lmtower_{name}", "gauge", help, labels)


REQUESTS = _request("requests", "Finished requests by outcome.", "outcome")
TOOL_CALLS = _request("tool_calls", "Tool calls by the guard's result.", "result")
TOKENS = (
    _request("input_tokens", "Prompt tokens, cached ones included."),
    _request("cached_tokens", "Prompt tokens that came from the engine's prefix cache."),
    _request("image_tokens", "Prompt tokens that were images."),
    _request("output_tokens", "Generated tokens, reasoning included."),
    _request("reasoning_tokens", "Generated tokens that were reasoning."),
)
IMAGES = _request("images", "Images sent by clients.")
RETRIED = _request("retried_requests", "Requests that a client's SDK marked as a retry.")
COLD = _request("cold_requests", "Prompts of 1024 tokens or more of which less than half came from the prefix cache.")
WITHIN_TARGET = _request("ttft_within_target", "Answers whose first token came within the persona's ttft_target.")
COST = _request("cost", "Spend by the persona's price table, in its currency.")

END_USER = ("client", "end_user")
END_USER_REQUESTS = Family("lmtower_end_user_requests", "counter", "Finished requests by end user.", END_USER)
END_USER_TOKENS = Family(
    "lmtower_end_user_tokens",
    "counter",
    "Tokens by end user: input (all), cached and image (parts of it), output.",
    (*END_USER, "kind"),
)
END_USER_IMAGES = Family("lmtower_end_user_images", "counter", "Images by end user.", END_USER)
END_USER_COST = Family("lmtower_end_user_cost", "counter", "Spend by end user, as lmtower_cost.", END_USER)

QUEUE = _latency("queue", "Time from arrival to admission.", QUEUE_BUCKETS)
TTFT = _latency("ttft", "Time from arrival to the first token.", TTFT_BUCKETS)
INTER_TOKEN = _latency("inter_token", "Mean time between two tokens of a streamed answer.", INTER_TOKEN_BUCKETS)
DURATION = _latency("request", "Time from arrival to the last byte.", DURATION_BUCKETS)
TTFT_BY_CACHE = _latency(
    "ttft_by_cache",
    "TTFT of prompts of 1024 tokens or more: warm (half or more came from the prefix cache) or cold.",
    TTFT_BUCKETS,
    ("persona", "engine", "cache"),
)

WHOSE = ("client", "persona", "engine")
UPSTREAM_CANCELLED = Family(
    "lmtower_upstream_cancelled", "counter", "Upstream requests that the gateway cancelled.", WHOSE
)
UPSTREAM_RETRIES = Family(
    "lmtower_upstream_retries", "counter", "Upstream requests that the gateway sent again.", (*WHOSE, "reason")
)
QUEUE_REFUSALS = Family(
    "lmtower_queue_refusals",
    "counter",
    "Requests that were not admitted: queue full, deadline passed, lane held by the watchdog.",
    ("engine", "lane", "reason"),
)
LIMIT_REFUSALS = Family(
    "lmtower_limit_refusals", "counter", "Requests refused by a budget or a rate limit.", ("client", "limit")
)
AUTH_FAILURES = Family("lmtower_auth_failures", "counter", "Requests without a usable key.", ("reason",))
RELOADS = Family("lmtower_config_reloads", "counter", "Reloads of the tower file.", ("result",))
HOLDS = Family("lmtower_watchdog_holds", "counter", "Times that a node's watchdog held a lane.", ("engine", "lane"))
CACHE_BUSTERS = Family(
    "lmtower_cache_busters",
    "counter",
    "Requests of a session whose beginning is not the previous one's: what changed first.",
    ("persona", "span"),
)
AUTH_REASONS = ("missing_key", "unknown_key")
RETRY_REASONS = ("connection", "unreachable", "not_ready")
RELOAD_RESULTS = ("ok", "failed")
EVENTS = (
    UPSTREAM_CANCELLED,
    UPSTREAM_RETRIES,
    LIMIT_REFUSALS,
    AUTH_FAILURES,
    RELOADS,
    HOLDS,
    CACHE_BUSTERS,
)

ENGINE_STATE = _gauge("engine_state", "1 for the state that the engine is in.", "engine", "state")
ENGINE_READY = _gauge("engine_ready_seconds", "Seconds since the engine became ready; 0 while it is not.", "engine")
ENGINE_SLOTS = _gauge("engine_slots", "Requests that the gateway sends to the engine at once.", "engine")
ENGINE_IN_FLIGHT = _gauge("engine_in_flight", "Requests that the engine is working on.", "engine")
ENGINE_QUEUED = _gauge("engine_queued", "Requests waiting for a slot.", "engine", "lane")
ENGINE_HELD = _gauge("engine_held", "1 while the watchdog of the engine's node holds the lane.", "engine", "lane")
UPSTREAM_HEALTHY = _gauge("upstream_healthy", "1 while the replica answers its health check.", "engine", "replica")
UPSTREAM_CIRCUIT = _gauge("upstream_circuit", "Circuit breaker: 0 closed, 1 half open, 2 open.", "engine", "replica")
PERSONA_INFO = _gauge("persona_info", "Personas of the current snapshot.", "persona", "engine", "lane")
PERSONA_TARGET = _gauge("persona_ttft_target_seconds", "The persona's ttft_target.", "persona")
BUDGET_USED = _gauge("budget_used_ratio", "Used share of a budget; 1 is spent.", "client", "limit")
CLOUD_PRICE = _gauge("cloud_price", "Price per million tokens of the cloud model to compare with.", "kind")
OPEN_STREAMS = _gauge("open_streams", "Answers that are being streamed to clients.")
CONNECTIONS = _gauge("connections", "Open client connections.")
LOOP_LAG = _gauge("event_loop_lag_seconds", "Largest delay of the event loop since the last scrape.")
JOURNAL_LAG = _gauge("journal_lag_seconds", "Age of the oldest usage record that is not in the database yet.")
JOURNAL_PENDING = _gauge("journal_pending_records", "Usage records that are not in the database yet.")
SNAPSHOT_VERSION = _gauge("snapshot_version", "Counts up with every tower file that was put into service.")
SNAPSHOT_LOADED = _gauge("snapshot_loaded_timestamp_seconds", "When the current tower file was put into service.")
RELOAD_FAILED = _gauge("config_reload_failed", "1 while the tower file on disk is wrong and the last good one serves.")
CERTIFICATE = _gauge("certificate_expiry_timestamp_seconds", "When the TLS certificate of the gateway runs out.")
BUILD_INFO = _gauge("build_info", "Version of lmtower.", "version")
NAMED_CLIENTS = _gauge("named_clients", "Clients with series of their own; the rest is counted as other.")
SCRAPE_SECONDS = _gauge("last_render_seconds", "How long the previous rendering of these metrics took.")

HISTOGRAMS = (QUEUE, TTFT, INTER_TOKEN, DURATION)
FAMILIES: tuple[Family, ...] = (
    REQUESTS,
    *TOKENS,
    IMAGES,
    TOOL_CALLS,
    RETRIED,
    COLD,
    WITHIN_TARGET,
    COST,
    END_USER_REQUESTS,
    END_USER_TOKENS,
    END_USER_IMAGES,
    END_USER_COST,
    *HISTOGRAMS,
    TTFT_BY_CACHE,
    *EVENTS,
    QUEUE_REFUSALS,
    ENGINE_STATE,
    ENGINE_READY,
    ENGINE_SLOTS,
    ENGINE_IN_FLIGHT,
    ENGINE_QUEUED,
    ENGINE_HELD,
    UPSTREAM_HEALTHY,
    UPSTREAM_CIRCUIT,
    PERSONA_INFO,
    PERSONA_TARGET,
    BUDGET_USED,
    CLOUD_PRICE,
    OPEN_STREAMS,
    CONNECTIONS,
    LOOP_LAG,
    JOURNAL_LAG,
    JOURNAL_PENDING,
    SNAPSHOT_VERSION,
    SNAPSHOT_LOADED,
    RELOAD_FAILED,
    CERTIFICATE,
    BUILD_INFO,
    NAMED_CLIENTS,
    SCRAPE_SECONDS,
)
