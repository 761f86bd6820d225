"""The tower's state for people and for Prometheus: engines, personas, reloads, lag."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any

from lmtower.gateway.budgets import budgets, certificate_expiry
from lmtower.telemetry.state import EngineState, PersonaState, TowerState, UpstreamState

if TYPE_CHECKING:
    from lmtower.gateway.app import Gateway


def engine_states(gateway: Gateway) -> tuple[EngineState, ...]:
    """Every engine of the current snapshot."""
    now = gateway.clock()
    return tuple(
        EngineState(
            engine.name,
            "draining" if gateway.draining else engine.condition(),
            engine.admission.slots,
            engine.admission.in_flight,
            engine.admission.queued(),
            frozenset(engine.admission.held),
            max((now - r.ready_since for r in engine.replicas if r.healthy), default=0.0),
            upstreams=tuple(
                UpstreamState(r.upstream.replica, bool(r.healthy), r.circuit.state(now)) for r in engine.replicas
            ),
            refusals=engine.admission.refusals,
        )
        for engine in gateway.snapshot.engines.values()
    )


def tower_state(gateway: Gateway) -> TowerState:
    """Everything that is a gauge, read at scrape time."""
    current = gateway.snapshot
    price = current.tower.observability.cloud_price
    return TowerState(
        engines=engine_states(gateway),
        personas=tuple(PersonaState(p.name, p.engine, p.lane, p.ttft_target) for p in current.personas.values()),
        cloud_price={}
        if price is None
        else {
            "input": price.input,
            "cached": price.input if price.cached is None else price.cached,
            "output": price.output,
        },
        open_streams=len(gateway.watch.relays),
        connections=len(gateway.server.connections),
        event_loop_lag_seconds=gateway.lag.take(),
        journal_lag_seconds=gateway.ledger.lag_seconds,
        journal_pending_records=gateway.ledger.lag_records,
        snapshot_version=current.version,
        snapshot_loaded_at=gateway.loaded_at,
        reload_failed=gateway.reload_error is not None,
        budgets=budgets(gateway.ledger.limits.accounts(), gateway.ledger.client_names(), time.time()),
        certificate_expires_at=certificate_expiry(current.tower.gateway.tls),
    )


def status(gateway: Gateway) -> dict[str, Any]:
    """``GET /admin/status``. Rates and medians are over the latest requests kept in memory."""
    recent = list(gateway.recent)
    current = gateway.snapshot

    def hit_rate(field: str, name: str) -> float | None:
        rows = [r for r in recent if getattr(r, field) == name and r.input_tokens]
        total = sum(r.input_tokens for r in rows)
        return sum(r.cached_tokens for r in rows) / total if total else None

    def persona(name: str) -> dict[str, Any]:
        rows = [r for r in recent if r.persona == name]
        times = [r.ttft_seconds for r in rows if r.ttft_seconds is not None]
        return {
            "requests": len(rows),
            "hit_rate": hit_rate("persona", name),
            "ttft_p50": median(times) if times else None,
        }

    return {
        "engines": [
            {
                "name": state.engine,
                "state": state.condition,
                "slots": state.slots,
                "in_flight": state.in_flight,
                "queued": dict(state.queued),
                "held": sorted(state.held),
                "ready_seconds": round(state.ready_seconds, 1),
                "hit_rate": hit_rate("engine", state.engine),
                "upstreams": [
                    {"name": r.upstream.replica, "url": r.upstream.url, "healthy": u.healthy, "circuit": u.circuit}
                    for r, u in zip(current.engines[state.engine].replicas, state.upstreams, strict=True)
                ],
            }
            for state in engine_states(gateway)
        ],
        "personas": [
            {"name": p.name, "engine": p.engine, "lane": p.lane, "description": p.description, **persona(p.name)}
            for p in current.personas.values()
        ],
        "snapshot": {
            "version": current.version,
            "loaded_at": gateway.loaded_at,
            "error": gateway.reload_error,
            "restart": gateway.restart,
        },
        "gateway": {
            "listen": gateway.started.gateway.listen,
            "open_streams": len(gateway.watch.relays),
            "connections": len(gateway.server.connections),
            "journal_pending_records": gateway.ledger.lag_records,
            "draining": gateway.draining,
        },
    }
