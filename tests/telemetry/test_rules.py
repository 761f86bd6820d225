"""Every alert fires when its fault is there and stays quiet when it is not, judged by ``promtool test rules``."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from lmtower.telemetry import rules

MINUTE = 4  # samples: promtool's interval below is 15 s


@dataclass(frozen=True)
class Case:
    """``series`` are promtool's input series; ``at`` is when the alert is looked for."""

    alert: str
    fires: bool
    series: dict[str, str]
    at: str = "10m"


def steady(value: float, minutes: int = 130) -> str:
    """The same value all the time."""
    return f"{value}x{minutes * MINUTE}"


def growing(per_sample: float, minutes: int = 130) -> str:
    """A counter that grows by the same amount every 15 s."""
    return f"0+{per_sample}x{minutes * MINUTE}"


LABELS = '{persona="plan",client="alice",engine="nemotron",lane="default"}'
UPSTREAM = '{engine="nemotron",replica="spark"}'
VLLM = '{job="vllm",engine="nemotron",replica="spark"}'
NODE = '{instance="spark:9401",node="spark"}'
GPU = '{instance="spark:9401",node="spark",gpu="0"}'


def outcomes(failed: float, good: float) -> dict[str, str]:
    """Requests that fail in the engine, and those that do not."""
    labels = 'persona="plan",client="a",engine="nemotron",lane="default"'
    return {
        f'lmtower_requests_total{{{labels},outcome="upstream_error"}}': growing(failed),
        f'lmtower_requests_total{{{labels},outcome="ok"}}': growing(good),
    }


def tools(rejected: float, valid: float) -> dict[str, str]:
    """Tool calls by result."""
    labels = 'persona="plan",client="a",engine="nemotron",lane="default"'
    return {
        f'lmtower_tool_calls_total{{{labels},result="rejected"}}': growing(rejected),
        f'lmtower_tool_calls_total{{{labels},result="valid"}}': growing(valid),
    }


def hit_rate(cached_before: float, cached_after: float, *, reload: bool) -> dict[str, str]:
    """An hour at one hit rate, then another; with or without a reload in between. 100 prompt tokens per sample."""
    hour = 60 * MINUTE
    cached = f"0+{cached_before}x{hour} {cached_before * hour}+{cached_after}x{hour}"
    return {
        f"lmtower_input_tokens_total{LABELS}": growing(100),
        f"lmtower_cached_tokens_total{LABELS}": cached,
        "lmtower_snapshot_version": f"1x{hour} {2 if reload else 1}x{hour}",
    }


def goodput(within: float, target: bool = True) -> dict[str, str]:
    """Of 10 answers per sample so many come within the target."""
    series = {
        f"lmtower_ttft_within_target_total{LABELS}": growing(within),
        f"lmtower_ttft_seconds_count{LABELS}": growing(10),
    }
    return series | ({'lmtower_persona_ttft_target_seconds{persona="plan"}': steady(2)} if target else {})


CASES = [
    Case("TowerDown", True, {'up{job="lmtower"}': steady(0)}),
    Case("TowerDown", True, {}),
    Case("TowerDown", False, {'up{job="lmtower"}': steady(1)}),
    Case("EngineDown", True, {f"lmtower_upstream_healthy{UPSTREAM}": steady(0)}),
    Case("EngineDown", False, {f"lmtower_upstream_healthy{UPSTREAM}": steady(1)}),
    Case("EngineDown", False, {f"lmtower_upstream_healthy{UPSTREAM}": "1x36 0x2 1x40"}),
    Case("EngineCircuitOpen", True, {f"lmtower_upstream_circuit{UPSTREAM}": steady(2)}),
    Case("EngineCircuitOpen", False, {f"lmtower_upstream_circuit{UPSTREAM}": steady(1)}),
    Case("UpstreamErrors", True, outcomes(failed=1, good=9), at="20m"),
    Case("UpstreamErrors", False, outcomes(failed=1, good=99), at="20m"),
    Case("PrefixHitRateHalved", True, hit_rate(80, 10, reload=True), at="80m"),
    Case("PrefixHitRateHalved", False, hit_rate(80, 10, reload=False), at="80m"),
    Case("PrefixHitRateHalved", False, hit_rate(80, 60, reload=True), at="80m"),
    Case("PrefixHitRateHalved", False, hit_rate(5, 1, reload=True), at="80m"),
    Case("KvCacheFull", True, {f"vllm:kv_cache_usage_perc{VLLM}": steady(0.97)}),
    Case("KvCacheFull", False, {f"vllm:kv_cache_usage_perc{VLLM}": steady(0.9)}),
    Case("Preemptions", True, {f"vllm:num_preemptions_total{VLLM}": growing(1)}, at="20m"),
    Case("Preemptions", False, {f"vllm:num_preemptions_total{VLLM}": steady(3)}, at="20m"),
    Case(
        "QueueDeadlineMissed",
        True,
        {'lmtower_queue_refusals_total{engine="nemotron",lane="batch",reason="deadline"}': growing(1)},
    ),
    Case(
        "QueueDeadlineMissed",
        False,
        {'lmtower_queue_refusals_total{engine="nemotron",lane="batch",reason="full"}': growing(1)},
    ),
    Case("GoodputLow", True, goodput(5), at="30m"),
    Case("GoodputLow", False, goodput(9), at="30m"),
    Case("GoodputLow", False, goodput(0, target=False), at="30m"),
    Case("ToolCallsRejected", True, tools(rejected=1, valid=9), at="40m"),
    Case("ToolCallsRejected", False, tools(rejected=1, valid=99), at="40m"),
    Case(
        "MemoryUnderReserve",
        True,
        {
            f"lmtower_node_memory_available_bytes{NODE}": steady(8 * 2**30),
            f"lmtower_node_memory_reserve_bytes{NODE}": steady(12 * 2**30),
        },
    ),
    Case(
        "MemoryUnderReserve",
        False,
        {
            f"lmtower_node_memory_available_bytes{NODE}": steady(13 * 2**30),
            f"lmtower_node_memory_reserve_bytes{NODE}": steady(12 * 2**30),
        },
    ),
    Case(
        "MemoryPressure",
        True,
        {'lmtower_node_pressure_ratio{node="spark",resource="memory",kind="some",window="avg60"}': steady(0.3)},
    ),
    Case(
        "MemoryPressure",
        False,
        {'lmtower_node_pressure_ratio{node="spark",resource="cpu",kind="some",window="avg60"}': steady(0.3)},
    ),
    Case("WatchdogHolds", True, {'lmtower_engine_held{engine="nemotron",lane="batch"}': steady(1)}),
    Case("WatchdogHolds", False, {}),
    Case(
        "GpuClockLow",
        True,
        {
            f"lmtower_node_gpu_sm_clock_hertz{GPU}": steady(6e8),
            f"lmtower_node_gpu_utilization_ratio{GPU}": steady(0.95),
        },
    ),
    Case(
        "GpuClockLow",
        False,
        {
            f"lmtower_node_gpu_sm_clock_hertz{GPU}": steady(6e8),
            f"lmtower_node_gpu_utilization_ratio{GPU}": steady(0.01),
        },
    ),
    Case("NodeAgentDown", True, {'up{job="lmtower-node",node="spark"}': steady(0)}),
    Case("NodeAgentDown", False, {'up{job="lmtower-node",node="spark"}': steady(1)}),
    Case("BudgetNearlySpent", True, {'lmtower_budget_used_ratio{client="a",limit="tokens_per_day"}': steady(0.85)}),
    Case("BudgetNearlySpent", False, {'lmtower_budget_used_ratio{client="a",limit="tokens_per_day"}': steady(0.7)}),
    Case("BudgetNearlySpent", False, {'lmtower_budget_used_ratio{client="a",limit="tokens_per_day"}': steady(1.0)}),
    Case("BudgetSpent", True, {'lmtower_budget_used_ratio{client="a",limit="tokens_per_day"}': steady(1.0)}),
    Case("BudgetSpent", False, {'lmtower_budget_used_ratio{client="a",limit="tokens_per_day"}': steady(0.99)}),
    Case("EventLoopLag", True, {"lmtower_event_loop_lag_seconds": steady(0.6)}),
    Case("EventLoopLag", False, {"lmtower_event_loop_lag_seconds": "0.001x36 0.9x1 0.001x40"}),
    Case("JournalLag", True, {"lmtower_journal_lag_seconds": steady(90)}),
    Case("JournalLag", False, {"lmtower_journal_lag_seconds": steady(2)}),
    Case("ReloadFailed", True, {"lmtower_config_reload_failed": steady(1)}),
    Case("ReloadFailed", False, {"lmtower_config_reload_failed": steady(0)}),
    # promtool's clock starts at the epoch
    Case("CertificateExpires", True, {"lmtower_certificate_expiry_timestamp_seconds": steady(86400 * 5)}, at="90m"),
    Case("CertificateExpires", False, {"lmtower_certificate_expiry_timestamp_seconds": steady(86400 * 60)}, at="90m"),
]


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    """No alert is left without proof in both directions."""
    names = {alert.name for alert in rules.ALERTS}
    assert {case.alert for case in CASES if case.fires} == names
    assert {case.alert for case in CASES if not case.fires} == names


def test_alert_names_are_unique() -> None:
    """Two rules of one name would hide each other."""
    names = [alert.name for alert in rules.ALERTS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("alert", rules.ALERTS, ids=lambda alert: alert.name)
def test_runbook_says_where_to_look_and_what_to_do(alert: rules.Alert) -> None:
    """An alert without a next step is noise."""
    assert alert.runbook.startswith("Look: ")
    assert " Do: " in alert.runbook
    assert alert.summary.endswith(".")


@pytest.mark.tools
def test_promtool_agrees_with_every_case(tmp_path: Path) -> None:
    """The real rule engine evaluates all cases at once."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian: prometheus) is not installed")
    (tmp_path / "rules.yaml").write_text(json.dumps(rules.rule_file()))
    (tmp_path / "cases.yaml").write_text(json.dumps(_promtool_tests()))
    done = subprocess.run(
        [promtool, "test", "rules", str(tmp_path / "cases.yaml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _promtool_tests() -> dict[str, object]:
    return {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "15s",
        "tests": [
            {
                "name": f"{case.alert} #{number}",
                "interval": "15s",
                "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{case.alert}",alertstate="firing"}})',
                        "eval_time": case.at,
                        "exp_samples": [{"labels": "{}", "value": 1}] if case.fires else [],
                    }
                ],
            }
            for number, case in enumerate(CASES)
        ],
    }
