"""docs/observability.md says what is really there."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmtower.telemetry import families, rules
from lmtower.telemetry.dashboards import BOARDS

TEXT = (Path(__file__).parents[2] / "docs/observability.md").read_text("utf-8")


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.name)
def test_metric_is_documented_as_it_is(family: families.Family) -> None:
    """Name, kind, labels and meaning, word for word."""
    name = family.name + ("_total" if family.kind == "counter" else "")
    assert f"| `{name}` | {family.kind} | {', '.join(family.labels)} | {family.help} |" in TEXT


@pytest.mark.parametrize("alert", rules.ALERTS, ids=lambda alert: alert.name)
def test_alert_is_documented(alert: rules.Alert) -> None:
    """Name and severity."""
    assert f"| `{alert.name}` | {alert.severity} |" in TEXT


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_dashboard_is_documented(board: object) -> None:
    """By its title."""
    assert f"**{board.title.partition(' / ')[2]}**" in TEXT  # type: ignore[attr-defined]
