"""What the gateway tells at scrape time: engines, personas, budgets, itself. Values only, rendered as gauges.

Structs of msgspec and not dataclasses: each of these is source that is compiled at every start of a tower, 1 ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

EngineCondition = Literal["stopped", "starting", "ready", "draining", "failed"]
ENGINE_CONDITIONS: tuple[EngineCondition, ...] = ("stopped", "starting", "ready", "draining", "failed")
Circuit = Literal["closed", "half_open", "open"]
CIRCUITS: tuple[Circuit, ...] = ("closed", "half_open", "open")


class UpstreamState(msgspec.Struct, frozen=True):
    """One replica of an engine. ``replica`` is a short stable name, such as its node."""

    replica: str
    healthy: bool
    circuit: Circuit = "closed"


class EngineState(msgspec.Struct, frozen=True):
    """One engine. ``queued`` and ``held`` are by lane."""

    engine: str
    condition: EngineCondition
    slots: int
    in_flight: int
    queued: Mapping[str, int] = msgspec.field(default_factory=dict)
    held: frozenset[str] = frozenset()
    ready_seconds: float = 0.0
    upstreams: tuple[UpstreamState, ...] = ()
    refusals: Mapping[tuple[str, str], int] = msgspec.field(default_factory=dict)
    """(lane, reason) -> requests that were not admitted since the start."""


class PersonaState(msgspec.Struct, frozen=True):
    """One persona of the current snapshot."""

    persona: str
    engine: str
    lane: str
    ttft_target_seconds: float | None = None


class BudgetState(msgspec.Struct, frozen=True):
    """How far one limit of one client is used up. ``limit`` is its key in the tower file (``money_per_month``)."""

    client: str
    limit: str
    used_ratio: float


class TowerState(msgspec.Struct, frozen=True):
    """Everything that is a gauge, as it is at this moment."""

    engines: tuple[EngineState, ...] = ()
    personas: tuple[PersonaState, ...] = ()
    budgets: tuple[BudgetState, ...] = ()
    cloud_price: Mapping[str, float] = msgspec.field(default_factory=dict)
    """Price per million tokens: keys ``input``, ``cached``, ``output``."""
    open_streams: int = 0
    connections: int = 0
    event_loop_lag_seconds: float = 0.0
    journal_lag_seconds: float = 0.0
    journal_pending_records: int = 0
    snapshot_version: int = 0
    snapshot_loaded_at: float = 0.0
    reload_failed: bool = False
    certificate_expires_at: float | None = None
