"""The planner's picture with observed numbers beside it: rows for the engines page. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from lmtower.console import charts, words
from lmtower.console.observed import Observed, hit_rate
from lmtower.console.settings import Json


def engine_rows(status: Json, plan: Json | None, observed: Observed, busy: set[str]) -> list[Json]:
    """One row per engine of the tower: state, slots, queue, what was planned, what it measures itself."""
    planned = {engine["name"]: engine for engine in (plan or {}).get("engines", ())}
    rows = []
    for engine in status["engines"]:
        numbers = observed.engines.get(engine["name"], {})
        rows.append(
            {
                **engine,
                "busy": engine["name"] in busy,
                "external": planned.get(engine["name"], {}).get("runtime") == "external",
                "waiting": sum(engine["queued"].values()),
                "planned": planned.get(engine["name"]),
                "slots_bar": slots_bar(engine),
                "observed": _in_words(numbers),
            }
        )
    return rows


def slots_bar(engine: Json) -> Markup:
    """Slots in use."""
    part = charts.Part(f"{engine['in_flight']} in flight", engine["in_flight"], "s1")
    return charts.bar([part], max(1, engine["slots"]), f"{engine['in_flight']} of {engine['slots']} slots in use")


def _in_words(numbers: Mapping[str, float]) -> list[tuple[str, str]]:
    found = []
    if "kv_cache_used" in numbers:
        found.append(("KV cache in use", words.percent(numbers["kv_cache_used"])))
    if "running" in numbers:
        found.append(("Running, waiting", f"{numbers['running']:.0f}, {numbers.get('waiting', 0):.0f}"))
    rate = hit_rate(numbers)
    if rate is not None:
        found.append(("Prefix cache hits", f"{words.percent(rate)} since its start"))
    if "preemptions" in numbers:
        found.append(("Preemptions", words.count(numbers["preemptions"])))
    return found


def node_rows(plan: Json | None, observed: Observed) -> list[Json]:
    """One row per node: the planned bar, the observed bar where the node's agent answers."""
    if plan is None:
        return []
    engines = {engine["name"]: engine for engine in plan["engines"]}
    rows = []
    for node in plan["nodes"]:
        total = node["facts"]["memory_total_bytes"]
        here = [engines[name] for name in node["engines"] if name in engines]
        rows.append(
            {
                "name": node["name"],
                "total_bytes": total,
                "free_bytes": node["free_bytes"],
                "hardware": node["facts"].get("hardware") or "",
                "planned": charts.bar(planned_parts(here, node["reserve_bytes"]), total, _said(node), height=28),
                "engines": here,
                "seen": _seen(node["name"], total, here, observed),
            }
        )
    return rows


def planned_parts(engines: list[Json], reserve_bytes: float) -> list[charts.Part]:
    """Weights, KV cache and overhead of each engine, then the reserve."""
    parts = []
    for engine in engines:
        for field, kind in (("weights_bytes", "weights"), ("kv_cache_bytes", "kv"), ("overhead_bytes", "overhead")):
            name = f"{engine['name']}: {field.removesuffix('_bytes').replace('_', ' ')} {words.size(engine[field])}"
            parts.append(charts.Part(name, engine[field], kind))
    return [*parts, charts.Part(f"reserve {words.size(reserve_bytes)}", reserve_bytes, "reserve")]


def _said(node: Json) -> str:
    used, total = words.size(node["used_bytes"]), words.size(node["facts"]["memory_total_bytes"])
    return f"Planned memory of {node['name']}: {used} of {total}, {words.size(node['free_bytes'])} left"


def _seen(name: str, total: float, engines: list[Json], observed: Observed) -> Json | None:
    numbers = observed.nodes.get(name, {})
    if "available_bytes" not in numbers:
        return None
    total = numbers.get("total_bytes", total)
    used = total - numbers["available_bytes"]
    by_engine = [(engine["name"], observed.memory.get((name, engine["name"]))) for engine in engines]
    parts = [charts.Part(f"{engine}: {words.size(size)}", size, "weights") for engine, size in by_engine if size]
    rest = max(0.0, used - sum(part.size for part in parts))
    text = f"{words.size(used)} in use, {words.size(numbers['available_bytes'])} available"
    parts.append(charts.Part(f"other {words.size(rest)}" if parts else text, rest, "other" if parts else "whole"))
    return {"bar": charts.bar(parts, total, f"Observed memory of {name}: {text}", height=28), "text": text}
