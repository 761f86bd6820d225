"""``plan``: a tower and facts of its nodes -> a Plan. Pure: files of models and facts come in as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lmtower.config.types import Tower
from lmtower.errors import PlanError
from lmtower.plan.catalogue import bundled
from lmtower.plan.hardware import facts as catalogue_facts
from lmtower.plan.model import ModelFiles
from lmtower.plan.solve import solve
from lmtower.plan.suggest import suggestions
from lmtower.plan.types import NodeFacts, Plan
from lmtower.plan.wants import LOCAL, Want, node_names, runtime_of, want
from lmtower.plan.warn import tower_warnings
from lmtower.plan.write import engine_plans, node_plan

CPU = "cpu"
"""``hardware:`` of a machine without a GPU; its memory is measured, not looked up."""


def tower_facts(tower: Tower, probed: Mapping[str, NodeFacts] | None = None) -> dict[str, NodeFacts]:
    """Facts of every node: probed ones first, else the hardware catalogue. Raises PlanError when neither knows it."""
    found = dict(probed or {})
    for name, node in tower.nodes.items():
        measured = found.get(name)
        if node.hardware not in (None, CPU):
            assert node.hardware is not None
            found[name] = _merged(catalogue_facts(node.hardware, name=name, reserve_bytes=node.reserve), measured)
        elif measured is not None:
            found[name] = replace(
                measured, reserve_bytes=measured.reserve_bytes if node.reserve is None else node.reserve
            )
        else:
            raise PlanError(
                f"nodes.{name}.hardware: {node.hardware or 'missing'}, so its memory is not known. "
                "Write hardware: dgx-spark, or a size such as 24 GiB",
                field=f"nodes.{name}.hardware",
            )
    return found


def _merged(known: NodeFacts, measured: NodeFacts | None) -> NodeFacts:
    """What was measured, under the reserve of the tower file; where only memory was, the catalogue knows the chip."""
    if measured is None:
        return known
    if measured.hardware is not None:
        return replace(measured, reserve_bytes=known.reserve_bytes)
    return replace(
        known,
        memory_total_bytes=measured.memory_total_bytes,
        memory_available_bytes=measured.memory_available_bytes,
        gpus=max(known.gpus, measured.gpus),
    )


def plan(
    tower: Tower,
    facts: Mapping[str, NodeFacts] | None = None,
    models: Mapping[str, ModelFiles] | None = None,
    corrections: Mapping[str, int] | None = None,
) -> Plan:
    """Plans a whole tower. ``models`` by engine name (missing: the bundled catalogue), ``corrections`` in bytes.

    Raises PlanError when a model cannot be understood; a set that does not fit is a Plan with ``fits=False``.
    """
    nodes = tower_facts(tower, facts)
    wants = tuple(_wants(tower, nodes, models or {}, corrections or {}))
    outcome = solve(wants, nodes)
    reasons = outcome.reasons if outcome.fits else (*outcome.reasons, *suggestions(outcome, nodes))
    engines = engine_plans(outcome, tower, nodes)
    return Plan(
        engines=engines,
        nodes=tuple(node_plan(name, node, outcome) for name, node in nodes.items()),
        fits=outcome.fits,
        reasons=reasons,
        warnings=tower_warnings(engines, nodes),
    )


def _wants(
    tower: Tower, nodes: Mapping[str, NodeFacts], models: Mapping[str, ModelFiles], corrections: Mapping[str, int]
) -> list[Want]:
    found = []
    for name, engine in tower.engines.items():
        if runtime_of(engine) == "external":
            continue
        for node in node_names(name, engine, tower):
            if node not in nodes:
                known = "the memory of this machine is not known" if node == LOCAL else f"there is no node {node!r}"
                raise PlanError(
                    f"engines.{name}.node: {known}. Write a node with its hardware", field=f"engines.{name}.node"
                )
        files = models.get(name) or bundled(engine.model)
        if files is None:
            raise PlanError(
                f"engines.{name}.model: {engine.model!r} is neither bundled, nor a folder, nor in the "
                "Hugging Face cache. "
                "With network, lmtower plan reads its config.json from the hub",
                field=f"engines.{name}.model",
            )
        found.append(want(name, tower, files, nodes, corrections.get(name, 0)))
    return found
