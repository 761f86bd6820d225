"""The dashboards' JSON: sound, complete, and made only of metrics that exist."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema_rs
import pytest

from lmtower.telemetry import families, grafana, rules
from lmtower.telemetry.dashboards import BOARDS
from lmtower.telemetry.dashboards.panels import Board
from tests.telemetry.dashboard_schema import SCHEMA

boards = pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
METRIC = re.compile(r"\b(lmtower_[a-z_]+|[a-z]+:[a-z_]+:[a-z0-9_]+)")


def panels(board: Board) -> list[dict[str, Any]]:
    """Panels of a rendered board, rows left out."""
    return [panel for panel in grafana.render(board)["panels"] if panel["type"] != "row"]


def known_metrics() -> set[str]:
    """Every sample name of the gateway and every recorded series."""
    names = {rule.name for rule in rules.RECORDINGS}
    for family in families.FAMILIES:
        suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}[family.kind]
        names |= {family.name + suffix for suffix in suffixes}
    return names


def test_there_are_four_boards_with_their_own_uids() -> None:
    """Grafana overwrites by uid: two equal ones would be one dashboard."""
    assert len({board.uid for board in BOARDS}) == 4


@boards
def test_dashboard_has_the_shape_that_grafana_reads(board: Board) -> None:
    """Its JSON Schema holds; a unit that Grafana does not know, or a field in the wrong place, would be found."""
    rendered = grafana.render(board)
    validator = jsonschema_rs.validator_for(SCHEMA)
    assert [f"{list(error.instance_path)}: {error.message}" for error in validator.iter_errors(rendered)] == []
    for break_it in (
        lambda panel: panel["fieldConfig"]["defaults"].update(unit="tokens"),
        lambda panel: panel.update(expr="up"),
        lambda panel: panel["targets"].clear(),
        lambda panel: panel["gridPos"].update(x="0"),
    ):
        broken = json.loads(json.dumps(rendered))
        break_it(broken["panels"][1])
        assert not validator.is_valid(broken)


@boards
def test_ids_are_unique_and_positive(board: Board) -> None:
    """Links and exports address panels by id."""
    ids = [panel["id"] for panel in grafana.render(board)["panels"]]
    assert len(ids) == len(set(ids))
    assert min(ids) > 0


@boards
def test_every_panel_explains_itself(board: Board) -> None:
    """Title, description, unit and something to say when empty."""
    for panel in panels(board):
        assert panel["title"]
        assert panel["description"].rstrip("`").endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["fieldConfig"]["defaults"]["noValue"]


@boards
def test_every_query_uses_the_datasource_variable(board: Board) -> None:
    """The dashboards work with any Prometheus, not just the one they were made with."""
    rendered = grafana.render(board)
    assert (
        rendered["templating"]["list"][0] | {"type": "datasource", "query": "prometheus"}
        == rendered["templating"]["list"][0]
    )
    for panel in panels(board):
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFG"[: len(panel["targets"])])
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


@boards
def test_panels_do_not_overlap(board: Board) -> None:
    """The grid of 24 columns holds each panel in a place of its own."""
    taken: set[tuple[int, int]] = set()
    for panel in grafana.render(board)["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells


@boards
def test_variables_in_queries_are_declared(board: Board) -> None:
    """A query that names an unknown variable matches nothing in Grafana."""
    rendered = grafana.render(board)
    declared = {variable["name"] for variable in rendered["templating"]["list"]} | {"__rate_interval", "__range"}
    used = {
        name
        for panel in panels(board)
        for target in panel["targets"]
        for name in re.findall(r"\$\{?(\w+)", target["expr"])
    }
    assert used <= declared


@boards
def test_boards_link_to_each_other(board: Board) -> None:
    """One tag binds the four together."""
    rendered = grafana.render(board)
    assert rendered["tags"] == ["lmtower"]
    assert [(link["type"], link["tags"]) for link in rendered["links"]] == [("dashboards", ["lmtower"])]


@boards
def test_queries_name_only_metrics_that_exist(board: Board) -> None:
    """A renamed metric breaks this test, not a dashboard in somebody's rack."""
    used = {name for panel in panels(board) for target in panel["targets"] for name in METRIC.findall(target["expr"])}
    assert {name for name in used if not name.startswith("lmtower_node_")} <= known_metrics()


def test_alerts_name_only_metrics_that_exist() -> None:
    """The same for rules."""
    used = {name for rule in (*rules.ALERTS, *rules.RECORDINGS) for name in METRIC.findall(rule.expr)}
    assert {name for name in used if not name.startswith("lmtower_node_")} <= known_metrics()


def test_files_are_plain_data_that_point_at_each_other() -> None:
    """The provider's folder holds the dashboards; the data source has the uid that nothing else may have."""
    found = grafana.files("http://prometheus:9090")
    assert json.loads(json.dumps(found)) == found
    source = found["provisioning/datasources/lmtower.yaml"]["datasources"][0]
    assert (source["uid"], source["url"]) == (grafana.DATASOURCE_UID, "http://prometheus:9090")
    assert sum(path.startswith("dashboards/") for path in found) == 4
