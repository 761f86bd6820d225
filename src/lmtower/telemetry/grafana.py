"""Dashboards as Grafana's JSON, and the provisioning files that put them in place without a click."""

from __future__ import annotations

import json
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from lmtower.telemetry.dashboards import BOARDS
from lmtower.telemetry.dashboards.panels import Board, Panel, PanelKind, Query, Row, Variable

DATASOURCE_UID = "lmtower-prometheus"
DASHBOARD_FOLDER = "/var/lib/grafana/dashboards/lmtower"
_DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_LETTERS = "ABCDEFGHIJ"
_BUILDERS: dict[PanelKind, Any] = {
    "timeseries": timeseries.Panel,
    "stat": stat.Panel,
    "bargauge": bargauge.Panel,
}


def files(prometheus_url: str) -> dict[str, Any]:
    """Path -> content of everything that Grafana needs; paths are relative to one folder to be mounted."""
    found: dict[str, Any] = {
        "provisioning/datasources/lmtower.yaml": datasource(prometheus_url),
        "provisioning/dashboards/lmtower.yaml": provider(),
    }
    return found | {f"dashboards/{board.uid}.json": render(board) for board in BOARDS}


def datasource(prometheus_url: str) -> dict[str, Any]:
    """Provisioning of the Prometheus data source, with exemplars."""
    return {
        "apiVersion": 1,
        "datasources": [
            {
                "name": "lmtower",
                "uid": DATASOURCE_UID,
                "type": "prometheus",
                "access": "proxy",
                "url": prometheus_url,
                "isDefault": True,
                "jsonData": {"httpMethod": "POST", "timeInterval": "15s"},
            }
        ],
    }


def provider() -> dict[str, Any]:
    """Provisioning of the folder with the dashboards."""
    return {
        "apiVersion": 1,
        "providers": [
            {
                "name": "lmtower",
                "orgId": 1,
                "folder": "lmtower",
                "type": "file",
                "disableDeletion": True,
                "updateIntervalSeconds": 30,
                "allowUiUpdates": False,
                "options": {"path": DASHBOARD_FOLDER},
            }
        ],
    }


def render(board: Board) -> dict[str, Any]:
    """One dashboard as the JSON that Grafana 11.6 reads (classic model, schema 41)."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["lmtower"])
        .refresh("30s")
        .time("now-3h", "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("lmtower")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["lmtower"])
            .keep_time(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .annotation(_reloads())
    )
    for variable in board.variables:
        built = built.with_variable(_variable(variable))
    number = y = 0
    for row in board.rows:
        number += 1
        built = built.with_row(dashboard.Row(row.title).id(number).grid_pos(models.GridPos(h=1, w=24, x=0, y=y)))
        for panel, (x, top) in zip(row.panels, _places(row, y + 1), strict=True):
            number += 1
            built = built.with_panel(_panel(panel, number, x, top))
        y = 1 + max(top + panel.height for panel, (_, top) in zip(row.panels, _places(row, y + 1), strict=True))
    rendered: dict[str, Any] = json.loads(JSONEncoder(sort_keys=True).encode(built.build()))
    return rendered


def _places(row: Row, y: int) -> list[tuple[int, int]]:
    """Left to right, 24 columns wide; a new line begins when a panel does not fit."""
    places, x, tallest = [], 0, 0
    for panel in row.panels:
        if x + panel.width > 24:
            x, y, tallest = 0, y + tallest, 0
        places.append((x, y))
        x, tallest = x + panel.width, max(tallest, panel.height)
    return places


def _variable(variable: Variable) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(variable.name)
        .label(variable.name.capitalize())
        .datasource(_DATASOURCE)
        .query({"query": f"label_values({variable.metric}, {variable.label})", "refId": "A"})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def _reloads() -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name("Reloads")
        .datasource(_DATASOURCE)
        .enable(True)
        .icon_color("blue")
        .expr("changes(lmtower_snapshot_version[1m]) > 0")
    )


def _panel(panel: Panel, number: int, x: int, y: int) -> Any:
    builder = _BUILDERS[panel.kind]()
    builder = (
        builder.id(number)
        .title(panel.title)
        .description(panel.description)
        .datasource(_DATASOURCE)
        .unit(panel.unit)
        .no_value(panel.empty)
        .grid_pos(models.GridPos(h=panel.height, w=panel.width, x=x, y=y))
    )
    if panel.minimum is not None:
        builder = builder.min(panel.minimum)
    if panel.maximum is not None:
        builder = builder.max(panel.maximum)
    if panel.decimals is not None:
        builder = builder.decimals(panel.decimals)
    if panel.thresholds:
        steps = [models.Threshold(value=value, color=color) for value, color in panel.thresholds]
        builder = builder.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
    if panel.kind == "timeseries":
        builder = _lines(builder, panel)
    for letter, query in zip(_LETTERS, panel.queries, strict=False):
        builder = builder.with_target(_query(query, letter))
    return builder


def _lines(builder: Any, panel: Panel) -> Any:
    legend = common.VizLegendOptions().show_legend(True).placement(common_models.LegendPlacement.BOTTOM)
    builder = builder.legend(legend.display_mode(common_models.LegendDisplayMode.LIST)).line_width(1)
    if panel.stack:
        stacking = common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A")
        builder = builder.stacking(stacking).fill_opacity(25)
    else:
        builder = builder.fill_opacity(8)
    return builder.show_points(common_models.VisibilityMode.NEVER)


def _query(query: Query, letter: str) -> prometheus.Dataquery:
    built = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(letter).datasource(_DATASOURCE)
    if query.instant:
        return built.instant().format(PromQueryFormat.TIME_SERIES)
    return built.range().exemplar(query.exemplars)
