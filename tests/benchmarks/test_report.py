"""The benchmark's tables: medians, ratios and what the bodies hold."""

from __future__ import annotations

import json
import math

from benchmarks.report import Medians, figure, markdown, ratio_table

from benchmarks import bodies

TABLE = {
    "lmtower": {"small": [{"rps": 10.0}, {"rps": 30.0}, {"rps": 20.0}]},
    "nginx": {"small": [{"rps": 40.0}]},
}


def test_medians_are_over_the_runs_and_missing_numbers_are_nan() -> None:
    """The middle run counts; what was not measured is shown as a dash."""
    median = Medians(TABLE)
    assert median("lmtower", "small", "rps") == 20.0
    assert math.isnan(median("lmtower", "agent", "p50"))
    assert figure(median("litellm", "small", "rps")) == "–"


def test_ratios_divide_ours_by_theirs() -> None:
    """20 of ours by 40 of nginx is a half."""
    assert "| small chat RPS | 0.50 × |" in ratio_table(Medians(TABLE), ["nginx"])


def test_markdown_has_a_rule_under_the_head() -> None:
    """The tables are read by people and by renderers."""
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |\n"


def test_agent_body_is_as_large_as_it_says_and_ends_with_its_mark() -> None:
    """About 900 KB, 202 messages, 24 tools, the same every time."""
    data = json.dumps(bodies.agent_chat())
    assert 800_000 < len(data) < 1_000_000
    assert bodies.END_MARK in data
    assert data == json.dumps(bodies.agent_chat())
