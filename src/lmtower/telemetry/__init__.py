"""Our metrics, and the Prometheus and Grafana files that read them."""

from lmtower.telemetry.lag import LoopLag
from lmtower.telemetry.metrics import Metrics
from lmtower.telemetry.series import Finished, Series
from lmtower.telemetry.state import BudgetState, EngineState, PersonaState, TowerState, UpstreamState

__all__ = [
    "BudgetState",
    "EngineState",
    "Finished",
    "LoopLag",
    "Metrics",
    "PersonaState",
    "Series",
    "TowerState",
    "UpstreamState",
]
