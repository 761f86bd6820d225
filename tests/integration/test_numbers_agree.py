"""Ledger, metrics and real vLLM count the same: tokens exactly, the hit rate within one percent."""

from __future__ import annotations

import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.observed import panel_queries, running_prometheus
from tests.integration.tower import Tower

pytestmark = [pytest.mark.tools, pytest.mark.vllm]
HITS, QUERIES = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"
PROMPT, GENERATED = "vllm:prompt_tokens_total", "vllm:generation_tokens_total"
HIT_RATES = ("lmtower-overview / Prefix hit rate / A", "lmtower-prefix-cache / As the engines count it / A")
RULES = "You are a careful assistant who answers in one short sentence. " * 30


@pytest.fixture
def tower(vllm: str, tmp_path: Path, ports: Callable[[], int]) -> Iterator[Tower]:
    """Two personas on it, one with a long system prompt."""
    made = Tower(tmp_path, ports(), {})
    made.write(
        {
            "engines": {"real": {"url": vllm, "model": "smol", "recipe": "smollm2", "slots": 4}},
            "personas": {"long": {"engine": "real", "system": RULES}, "short": {"engine": "real"}},
        }
    )
    made.up()
    yield made
    made.run("down", "--yes")


def counters(url: str) -> dict[str, float]:
    """Sum of every counter on a page, by sample name."""
    found: dict[str, float] = {}
    with urllib.request.urlopen(url, timeout=10) as reply:
        for family in text_string_to_metric_families(reply.read().decode()):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def ask(tower: Tower) -> None:
    """Ten questions to each persona."""
    for turn in range(10):
        for persona in ("long", "short"):
            status, answer = tower.chat(persona, f"Question {turn}?", max_tokens=8)
            assert (status, "usage" in answer) == (200, True)


def test_ledger_metrics_and_vllm_count_the_same(
    vllm: str, tower: Tower, tmp_path: Path, ports: Callable[[], int]
) -> None:
    """One number of tokens in three places; the dashboards' hit rates are those of vLLM's counters; its panels live."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    began = counters(vllm + "/metrics")
    admin = f"127.0.0.1:{tower.port + 1}"
    with running_prometheus(program, tmp_path / "prom", admin, ports()) as prometheus:
        ask(tower)  # counters that are far from zero: increase() guesses less at the beginning of the window
        prometheus.until("first scrape", lambda: len(prometheus.values("lmtower_input_tokens_total")) == 2)
        prometheus.until("vLLM's page", lambda: prometheus.values("vllm:prefix_cache_queries_total"))
        time.sleep(3)  # two scrapes with the numbers at rest, so that the window begins before the load
        before, since = counters(vllm + "/metrics"), time.monotonic()
        ask(tower)
        tower.until("ledger", lambda: tower.admin("/admin/usage?by=engine")["total"]["requests"] == 40)
        time.sleep(3)  # two scrapes with the final numbers
        after = counters(vllm + "/metrics")
        # the same window as between the two looks: its first sample was taken while the numbers were at rest
        queries = dict(panel_queries(f"{time.monotonic() - since + 0.5:.0f}s"))
        shown = {where: prometheus.values(queries[where]) for where in HIT_RATES}
        empty = [where for where, query in queries.items() if "vllm:" in query and not prometheus.values(query)]
    grown = {name: after[name] - before[name] for name in (HITS, QUERIES)}
    counted = grown[HITS] / grown[QUERIES]
    assert counted > 0.3
    assert shown == {where: [pytest.approx(counted, rel=0.01)] for where in HIT_RATES}
    assert empty == []
    page = counters(f"http://{admin}/metrics")
    total = tower.admin("/admin/usage?by=engine")["total"]
    spent = {name: after[name] - began.get(name, 0) for name in (PROMPT, GENERATED, HITS)}
    assert spent[PROMPT] == page["lmtower_input_tokens_total"] == total["input_tokens"]
    assert spent[GENERATED] == page["lmtower_output_tokens_total"] == total["output_tokens"]
    assert spent[HITS] == page["lmtower_cached_tokens_total"] == total["cached_tokens"]
