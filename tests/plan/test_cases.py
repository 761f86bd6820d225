"""The planner against real logs: every row of tests/data/cases is compared, or its data says why it cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.planner import cases, main, measured, question_of, rows

from lmtower.plan.fit import fit

GIB = 1024**3
ALL = [*cases(), *measured()]


@pytest.mark.parametrize("case", ALL, ids=[case["id"] for case in ALL])
def test_case_agrees_with_its_log(case: dict[str, Any]) -> None:
    """Every figure that a log gives is within its tolerance; a row without figures gives its reason."""
    found = list(rows(case))
    reading = case.get("reading", {})
    assert found or reading.get("kv"), "a row that is not compared must say why"
    wrong = [row for row in found if abs(row.error) > row.tolerance + 1e-9]
    assert wrong == []


def test_every_case_is_read_once() -> None:
    """reading.json has one entry for each logged case."""
    assert len(cases()) == 49
    assert all(case["reading"] for case in cases())


@pytest.mark.parametrize(
    "case", [case for case in cases() if case["reading"].get("refused")], ids=lambda case: case["id"]
)
def test_refused_start_never_fits(case: dict[str, Any]) -> None:
    """Where the log shows a refusal, the planner refuses too."""
    pool = case.get("kv_available_gib")
    question = question_of(case, int(pool * GIB))
    assert question is not None
    answer = fit(question)
    assert not answer.fits
    assert answer.reasons


def test_h100_refuses_gpt_oss_120b_without_a_known_pool() -> None:
    """gpt-oss-120b with 0.10.1's defaults did not start on an H100, and is refused from the catalogue alone."""
    case = next(case for case in cases() if case["id"] == "C25")
    question = question_of(case, None)
    assert question is not None
    assert not fit(question).fits


def test_benchmark_prints_a_row_for_each_figure(capsys: pytest.CaptureFixture[str]) -> None:
    """``make bench`` shows case, figure, predicted, logged and error."""
    main()
    out = capsys.readouterr().out
    assert "| C01 | KV tokens | 1,179,648.00 | 1,179,648.00 | +0.00% |" in out
    assert "- C04 " in out
