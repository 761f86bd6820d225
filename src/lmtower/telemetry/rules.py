"""Recording rules and alerts, each alert with the text that tells its reader what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Recording:
    """A series that Prometheus keeps because dashboards and alerts ask for it often."""

    name: str
    expr: str


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert. ``runbook`` says what to look at and what to do, in that order."""

    name: str
    expr: str
    wait: str
    severity: Literal["critical", "warning", "info"]
    summary: str
    runbook: str


def _share(part: str, whole: str, by: str, window: str = "5m") -> str:
    return f"sum by ({by}) (rate({part}[{window}])) / (sum by ({by}) (rate({whole}[{window}])) > 0)"


_CACHED, _INPUT = "lmtower_cached_tokens_total", "lmtower_input_tokens_total"

RECORDINGS = (
    *(
        Recording(f"{by}:lmtower_prefix_hit:ratio_rate5m", _share(_CACHED, _INPUT, by))
        for by in ("persona", "client", "engine")
    ),
    Recording(
        "engine:vllm_prefix_hit:ratio_rate5m",
        _share("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total", "engine"),
    ),
    Recording(  # llama.cpp counts computed prompt tokens apart from cached ones
        "engine:llamacpp_prefix_hit:ratio_rate5m",
        "sum by (engine) (rate(llamacpp:prompt_tokens_cached_total[5m])) / (sum by (engine) ("
        "rate(llamacpp:prompt_tokens_cached_total[5m]) + rate(llamacpp:prompt_tokens_total[5m])) > 0)",
    ),
    Recording("persona:lmtower_input_tokens:rate1m", "sum by (persona) (rate(lmtower_input_tokens_total[1m]))"),
    Recording("persona:lmtower_output_tokens:rate1m", "sum by (persona) (rate(lmtower_output_tokens_total[1m]))"),
    Recording("engine:lmtower_output_tokens:rate1m", "sum by (engine) (rate(lmtower_output_tokens_total[1m]))"),
    Recording(
        "persona:lmtower_goodput:ratio_rate5m",
        _share("lmtower_ttft_within_target_total", "lmtower_ttft_seconds_count", "persona")
        + " and on (persona) lmtower_persona_ttft_target_seconds",
    ),
    Recording(
        "persona:lmtower_ttft_seconds:p95_rate5m",
        "histogram_quantile(0.95, sum by (persona, le) (rate(lmtower_ttft_seconds_bucket[5m])))",
    ),
    Recording(
        "engine:lmtower_upstream_errors:ratio_rate5m",
        _share('lmtower_requests_total{outcome="upstream_error"}', "lmtower_requests_total", "engine"),
    ),
    Recording(
        "persona:lmtower_tool_rejections:ratio_rate15m",
        _share('lmtower_tool_calls_total{result="rejected"}', "lmtower_tool_calls_total", "persona", "15m"),
    ),
)

ALERTS = (
    Alert(
        "TowerDown",
        'absent(up{job="lmtower"} == 1)',
        "1m",
        "critical",
        "The tower does not answer on its admin listener.",
        "Look: systemctl status lmtower, journalctl -u lmtower. Do: restart it; usage records on disk are kept. "
        "If Prometheus runs elsewhere, check that it reaches the admin listener.",
    ),
    Alert(
        "EngineDown",
        "lmtower_upstream_healthy == 0",
        "1m",
        "critical",
        "Engine {{ $labels.engine }} ({{ $labels.replica }}) does not answer its health check.",
        "Look: lmtower status, lmtower logs {{ $labels.engine }}. Do: lmtower restart {{ $labels.engine }}; "
        "other engines are not touched. Clients get a clean 502 meanwhile.",
    ),
    Alert(
        "EngineCircuitOpen",
        "lmtower_upstream_circuit == 2",
        "2m",
        "warning",
        "The gateway stopped sending to {{ $labels.engine }} ({{ $labels.replica }}) after repeated errors.",
        "Look: lmtower logs {{ $labels.engine }} for the first error. Do: restart the engine if it does not recover.",
    ),
    Alert(
        "UpstreamErrors",
        "engine:lmtower_upstream_errors:ratio_rate5m > 0.05",
        "5m",
        "warning",
        "{{ $value | humanizePercentage }} of the requests to {{ $labels.engine }} end in an engine error.",
        "Look: the Requests page of the console, lmtower logs {{ $labels.engine }}. "
        "Do: undo the last change of the engine's flags or version.",
    ),
    Alert(
        "PrefixHitRateHalved",
        "(persona:lmtower_prefix_hit:ratio_rate5m < 0.5 * (persona:lmtower_prefix_hit:ratio_rate5m offset 1h > 0.1))"
        " and on (persona) persona:lmtower_input_tokens:rate1m > 0"
        " and on () (changes(lmtower_snapshot_version[1h]) > 0)",
        "5m",
        "warning",
        "The prefix hit rate of {{ $labels.persona }} fell to {{ $value | humanizePercentage }} after a reload.",
        "Look: the Prefix cache dashboard and lmtower explain for this persona: did its system prompt change, "
        "or does it hold a date, an id or tools in changing order? "
        "Do: make the beginning of the prompt stable again. A changed prompt warms up by itself within minutes.",
    ),
    Alert(
        "KvCacheFull",
        "vllm:kv_cache_usage_perc > 0.95",
        "5m",
        "warning",
        "The KV cache of {{ $labels.engine }} is {{ $value | humanizePercentage }} full.",
        "Look: Engines & nodes, preemptions and waiting requests. "
        "Do: lower `sequences` or `context` of the engine, or give it more `kv_cache_memory` "
        "(lmtower plan tells if it fits).",
    ),
    Alert(
        "Preemptions",
        "increase(vllm:num_preemptions_total[10m]) > 5",
        "1m",
        "warning",
        "{{ $labels.engine }} interrupted {{ $value | humanize }} requests in ten minutes for lack of KV cache.",
        "Look: KV cache use of the engine. Do: lower `sequences`; preempted requests compute their prompt twice.",
    ),
    Alert(
        "QueueDeadlineMissed",
        'sum by (engine, lane) (increase(lmtower_queue_refusals_total{reason="deadline"}[5m])) > 0',
        "0m",
        "warning",
        "Requests of lane {{ $labels.lane }} waited too long for {{ $labels.engine }} and were refused.",
        "Look: Overview, queue by lane: who fills the slots? "
        "Do: move bulk work to lane batch, reserve slots for the lane, or raise `lanes.deadline`.",
    ),
    Alert(
        "GoodputLow",
        "persona:lmtower_goodput:ratio_rate5m < 0.8",
        "15m",
        "warning",
        "Only {{ $value | humanizePercentage }} of the answers of {{ $labels.persona }} start within its ttft_target.",
        "Look: queue time against TTFT: a long queue wants slots or lanes, a long prefill wants the prefix cache. "
        "Do: see the Prefix cache dashboard; otherwise set a target that this machine can reach.",
    ),
    Alert(
        "ToolCallsRejected",
        "persona:lmtower_tool_rejections:ratio_rate15m > 0.05",
        "10m",
        "warning",
        "{{ $value | humanizePercentage }} of the tool calls of {{ $labels.persona }} could not be repaired.",
        "Look: which client and tool (Clients dashboard). Do: tools: strict on the persona, lower its temperature, "
        "and check that the recipe's tool parser fits the model.",
    ),
    Alert(
        "MemoryUnderReserve",
        "lmtower_node_memory_available_bytes < on (instance, node) lmtower_node_memory_reserve_bytes",
        "30s",
        "critical",
        "Node {{ $labels.node }} has {{ $value | humanize1024 }}B left, less than its reserve.",
        "Look: Engines & nodes, memory per process. Do: stop the least important engine before the kernel freezes; "
        "the node's watchdog does so by itself when it runs (lmtower node-agent).",
    ),
    Alert(
        "MemoryPressure",
        'lmtower_node_pressure_ratio{resource="memory",kind="some",window="avg60"} > 0.1',
        "2m",
        "warning",
        "Tasks on node {{ $labels.node }} wait for memory {{ $value | humanizePercentage }} of the time.",
        "Look: swap and page cache of the node. Do: as for MemoryUnderReserve; on unified memory a freeze is near.",
    ),
    Alert(
        "WatchdogHolds",
        "lmtower_engine_held == 1",
        "1m",
        "warning",
        "The watchdog holds lane {{ $labels.lane }} of {{ $labels.engine }}: its node runs out of memory.",
        "Look: Engines & nodes. Do: stop something on that node; the hold ends by itself when memory is back.",
    ),
    Alert(
        "GpuClockLow",
        "lmtower_node_gpu_sm_clock_hertz < 1e9 and on (instance, gpu) lmtower_node_gpu_utilization_ratio > 0.8",
        "5m",
        "warning",
        "GPU {{ $labels.gpu }} of {{ $labels.node }} runs at {{ $value | humanize }}Hz under load.",
        "Look: temperature and power of the GPU. Do: on a DGX Spark, unplug the power brick for 60 seconds.",
    ),
    Alert(
        "NodeAgentDown",
        'up{job="lmtower-node"} == 0',
        "5m",
        "warning",
        "The agent of node {{ $labels.node }} does not answer.",
        "Look: systemctl status lmtower-node-agent on the node. Do: start it; nobody guards the memory meanwhile.",
    ),
    Alert(
        "BudgetNearlySpent",
        "lmtower_budget_used_ratio >= 0.8 and lmtower_budget_used_ratio < 1",
        "0m",
        "info",
        "Client {{ $labels.client }} used {{ $value | humanizePercentage }} of {{ $labels.limit }}.",
        "Look: Clients dashboard. Do: tell its owner, or raise the limit of the key.",
    ),
    Alert(
        "BudgetSpent",
        "lmtower_budget_used_ratio >= 1",
        "0m",
        "warning",
        "Client {{ $labels.client }} has used up {{ $labels.limit }}.",
        "Look: Clients dashboard: is it work or a loop? Do: raise the limit, or wait until the window ends.",
    ),
    Alert(
        "EventLoopLag",
        "lmtower_event_loop_lag_seconds > 0.25",
        "2m",
        "warning",
        "The gateway's event loop is {{ $value | humanizeDuration }} late; every stream stutters.",
        "Look: CPU of the tower VM and request sizes. Do: give the VM a core, or run a second tower.",
    ),
    Alert(
        "JournalLag",
        "lmtower_journal_lag_seconds > 60",
        "2m",
        "warning",
        "Usage records wait {{ $value | humanizeDuration }} for the database.",
        "Look: the tower's log for database errors, free disk space. Do: mend the database; the journal keeps all.",
    ),
    Alert(
        "ReloadFailed",
        "lmtower_config_reload_failed == 1",
        "0m",
        "warning",
        "The tower file on disk is wrong; the last good one still serves.",
        "Look: lmtower check. Do: mend the line it names; the tower reloads by itself.",
    ),
    Alert(
        "CertificateExpires",
        "lmtower_certificate_expiry_timestamp_seconds - time() < 14 * 86400",
        "1h",
        "warning",
        "The gateway's TLS certificate runs out in {{ $value | humanizeDuration }}.",
        "Look: who renews it. Do: renew the files named under gateway.tls and reload.",
    ),
)


def rule_file(every: str = "15s") -> dict[str, Any]:
    """The rule file as plain data; rules are evaluated ``every`` so often."""
    recordings = [{"record": rule.name, "expr": rule.expr} for rule in RECORDINGS]
    alerts = [
        {
            "alert": alert.name,
            "expr": alert.expr,
            "for": alert.wait,
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "runbook": alert.runbook},
        }
        for alert in ALERTS
    ]
    return {
        "groups": [
            {"name": "lmtower-recordings", "interval": every, "rules": recordings},
            {"name": "lmtower-alerts", "interval": every, "rules": alerts},
        ]
    }
