"""What a dashboard is made of, as values: boards of rows of panels of queries. ``grafana.py`` turns them into JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

PanelKind = Literal["timeseries", "stat", "bargauge"]

GREEN, YELLOW, RED = "green", "yellow", "red"
Steps = tuple[tuple[float | None, str], ...]
HIGH_IS_BAD_RATIO: Steps = ((None, GREEN), (0.8, YELLOW), (0.95, RED))
LOW_IS_BAD_RATIO: Steps = ((None, RED), (0.3, YELLOW), (0.6, GREEN))
ANY_IS_BAD: Steps = ((None, GREEN), (0.0001, RED))
NONE_IS_BAD: Steps = ((None, RED), (1, GREEN))

PERSONA_ONLY, CLIENT_ONLY = 'persona=~"$persona"', 'client=~"$client"'
P = f"{PERSONA_ONLY},{CLIENT_ONLY}"
E = 'engine=~"$engine"'
N = 'node=~"$node"'
RATE = "$__rate_interval"


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression. ``instant`` asks for one value at the end of the range instead of a line."""

    expr: str
    legend: str = ""
    instant: bool = False
    exemplars: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """``unit`` is Grafana's name of it; ``width`` of 24. ``empty`` is shown when there is nothing to show."""

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str
    kind: PanelKind = "timeseries"
    width: int = 8
    height: int = 8
    thresholds: Steps = ()
    stack: bool = False
    minimum: float | None = 0
    maximum: float | None = None
    empty: str = "no data"
    decimals: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of a dashboard: the values of ``label`` of ``metric``."""

    name: str
    metric: str
    label: str


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]


PERSONA = Variable("persona", "lmtower_requests_total", "persona")
CLIENT = Variable("client", "lmtower_requests_total", "client")
ENGINE = Variable("engine", "lmtower_engine_slots", "engine")
NODE = Variable("node", "lmtower_node_memory_total_bytes", "node")


def rate(metric: str, labels: str, by: str = "", window: str = RATE) -> str:
    """``sum by (by) (rate(metric{labels}[window]))``"""
    return f"sum{_by(by)}(rate({metric}{{{labels}}}[{window}]))"


def increase(metric: str, labels: str, by: str = "") -> str:
    """Increase over the dashboard's range."""
    return f"sum{_by(by)}(increase({metric}{{{labels}}}[$__range]))"


def share(part: str, whole: str) -> str:
    """A ratio that is absent, not NaN, while nothing happens."""
    return f"{part} / ({whole} > 0)"


def hit_rate(by: str = "", over: Callable[[str, str, str], str] = rate) -> str:
    """Cached share of prompt tokens as the gateway counts them: ``over`` is ``rate`` or ``increase``."""
    return share(over("lmtower_cached_tokens_total", P, by), over("lmtower_input_tokens_total", P, by))


def quantile(q: float, histogram: str, labels: str, by: str = "") -> str:
    """A quantile of one of our histograms (or an engine's)."""
    grouped = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({grouped}) (rate({histogram}_bucket{{{labels}}}[{RATE}])))"


def _by(by: str) -> str:
    return f" by ({by}) " if by else " "
