"""JSON Schema of what Grafana 11.6 reads of a classic dashboard, as far as ours use it; nothing else may be in one."""

from __future__ import annotations

from typing import Any

_TEXT = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 0}
_BOOL = {"type": "boolean"}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


_GRID = _object(
    {
        "x": {"type": "integer", "minimum": 0, "maximum": 23},
        "y": _COUNT,
        "w": {"type": "integer", "minimum": 1, "maximum": 24},
        "h": {"type": "integer", "minimum": 1, "maximum": 40},
    }
)
_SOURCE = _object({"type": {"const": "prometheus"}, "uid": {"const": "${datasource}"}})
_STEP = _object({"color": {"enum": ["green", "yellow", "red"]}, "value": {"type": ["number", "null"]}})
_UNITS = ["short", "s", "bytes", "hertz", "watt", "celsius", "percentunit", "reqps", "ops"]
_DEFAULTS = _object(
    {"unit": {"enum": _UNITS}, "noValue": _TEXT},
    {
        "min": {"type": "number"},
        "max": {"type": "number"},
        "decimals": _COUNT,
        "thresholds": _object(
            {"mode": {"const": "absolute"}, "steps": {"type": "array", "items": _STEP, "minItems": 2}}
        ),
        "custom": {"type": "object"},
    },
)
_TARGET = _object(
    {
        "refId": {"type": "string", "pattern": "^[A-Z]$"},
        "expr": _TEXT,
        "datasource": _SOURCE,
        "instant": _BOOL,
        "range": _BOOL,
    },
    {"legendFormat": {"type": "string"}, "format": {"const": "time_series"}, "exemplar": _BOOL},
)
_PANEL = _object(
    {
        "id": {"type": "integer", "minimum": 1},
        "type": {"enum": ["timeseries", "stat", "bargauge"]},
        "title": _TEXT,
        "description": _TEXT,
        "datasource": _SOURCE,
        "gridPos": _GRID,
        "fieldConfig": _object({"defaults": _DEFAULTS, "overrides": {"type": "array"}}),
        "targets": {"type": "array", "items": _TARGET, "minItems": 1},
    },
    {"options": {"type": "object"}, "transparent": _BOOL, "repeatDirection": {"enum": ["h", "v"]}},
)
_ROW = _object(
    {
        "id": {"type": "integer", "minimum": 1},
        "type": {"const": "row"},
        "title": _TEXT,
        "collapsed": {"const": False},
        "gridPos": _GRID,
        "panels": {"const": []},
    }
)
_VARIABLE = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^[a-z]+$"}, "type": {"enum": ["datasource", "query"]}},
    "required": ["name", "type", "label", "query"],
    "if": {"properties": {"type": {"const": "query"}}},
    "then": {
        "properties": {"datasource": _SOURCE, "query": _object({"query": _TEXT, "refId": _TEXT}), "allValue": _TEXT},
        "required": ["datasource", "refresh", "allValue"],
    },
}
_LINK = {"type": "object", "required": ["title", "type", "tags", "keepTime"]}
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    **_object(
        {
            "uid": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,40}$"},
            "title": _TEXT,
            "description": _TEXT,
            "schemaVersion": {"const": 41},
            "tags": {"type": "array", "items": _TEXT, "minItems": 1},
            "panels": {"type": "array", "items": {"anyOf": [_ROW, _PANEL]}, "minItems": 2},
            "templating": _object({"list": {"type": "array", "items": _VARIABLE, "minItems": 1}}),
            "annotations": _object({"list": {"type": "array"}}),
            "links": {"type": "array", "items": _LINK, "minItems": 1},
            "time": _object({"from": _TEXT, "to": _TEXT}),
            "refresh": {"type": "string", "pattern": "^[0-9]+[smh]$"},
        },
        {
            "editable": _BOOL,
            "fiscalYearStartMonth": _COUNT,
            "graphTooltip": {"enum": [0, 1, 2]},
            "timezone": {"enum": ["browser", "utc"]},
        },
    ),
}
