"""What a tower file wants to run, and the drivers to run it with: for up, diff, restart, pull and down."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmtower.cli.engine_key import engine_key
from lmtower.cli.fleet import child_plans
from lmtower.cli.measured import Known
from lmtower.cli.upstreams import is_external
from lmtower.config.types import Node, Tower
from lmtower.engines import LaunchSpec, Outside, build_specs, driver_of
from lmtower.errors import PlanError, Refused
from lmtower.plan.types import EnginePlan, NodeFacts, NodePlan, Plan

if TYPE_CHECKING:
    from lmtower.cli.globals import Globals
    from lmtower.config import Loaded
    from lmtower.nodes.apply import Need
    from lmtower.nodes.drivers import Driver, Observed
    from lmtower.nodes.memory import MemoryProbe


@dataclass(frozen=True, slots=True)
class Desired:
    """The plan and the specs of one tower file. ``specs`` are in start order."""

    tower: Tower
    plan: Plan
    specs: tuple[LaunchSpec, ...]

    @property
    def rows(self) -> Mapping[str, EnginePlan]:
        """Planned engines by name."""
        return {row.name: row for row in self.plan.engines}


def desired_of(options: Globals, loaded: Loaded) -> Desired:
    """Plan the tower file and write every engine down. Raises PlanError with all reasons when it does not fit."""
    known = Known.read(options.data_dir)
    tower = known.engines(loaded.tower)
    plan = plan_of(loaded, options.environ, known)
    if not plan.fits:
        raise PlanError("\n".join(plan.reasons))
    outside = Outside(engine_key(options.data_dir), options.environ.get("HF_TOKEN"), sys.executable)
    return Desired(tower, plan, build_specs(plan, tower, outside))


def plan_of(loaded: Loaded, environ: Mapping[str, str], known: Known | None = None) -> Plan:
    """Engines on nodes with known hardware are solved, with what the nodes said of themselves; those of a machine
    without a GPU run as they are written.
    """
    known = known or Known()
    tower = known.engines(loaded.tower)
    for name, node in tower.nodes.items():
        if node.hardware is None and node.address != "local":
            raise Refused(
                f"nodes.{name}.hardware: missing, so nothing can be planned for it. Write hardware: dgx-spark, "
                "a size such as 24 GiB, or cpu for a machine without a GPU"
            )
    written = child_plans(tower)
    listed = {row.name for row in written}
    rest = {name: each for name, each in tower.engines.items() if name not in listed and not is_external(each)}
    if not rest:
        return Plan(written, (), fits=True)
    from lmtower.cli.plan import learned
    from lmtower.plan.planner import tower_facts
    from lmtower.plan.sources import collect

    nodes = {name: node for name, node in tower.nodes.items() if node.hardware not in (None, "cpu")}
    part = tower.model_copy(update={"engines": rest, "nodes": nodes})
    facts = tower_facts(part, known.facts(part)[0])
    solved = learned(part, facts, collect(part, loaded.path.parent, environ), loaded.path)
    rows = tuple(_with_port(row, tower) for row in solved.engines)
    return Plan((*rows, *written), solved.nodes or _bare(facts), solved.fits, solved.reasons, solved.warnings)


def _with_port(row: EnginePlan, tower: Tower) -> EnginePlan:
    """Ports count over the whole file, as the gateway counts them."""
    from dataclasses import replace

    from lmtower.cli.upstreams import ports

    return replace(row, port=ports(tower)[row.name])


def _bare(facts: Mapping[str, NodeFacts]) -> tuple[NodePlan, ...]:
    return tuple(NodePlan(each, (), 0, 0, 0) for each in facts.values())


def drivers_of(options: Globals, tower: Tower) -> dict[str, Driver]:
    """A driver for every node of the file; ``local`` for engines that name none."""
    nodes = dict(tower.nodes) or {"local": Node()}
    return {name: driver_for(options, name, node) for name, node in nodes.items()}


def driver_for(options: Globals, name: str, node: Node) -> Driver:
    """The driver that the tower file asks for."""
    if driver_of(node) == "process":
        from lmtower.nodes.drivers.process import ProcessDriver

        return ProcessDriver(name, options.data_dir, os.environ)
    from lmtower.nodes.drivers.docker import DockerDriver

    socket = options.environ.get("DOCKER_HOST") if node.address == "local" else None
    return DockerDriver(name, node.address, socket)


async def observe(drivers: Mapping[str, Driver]) -> tuple[tuple[Observed, ...], dict[str, str]]:
    """What runs on every node, and the reason for each node that cannot be asked."""
    import asyncio

    from lmtower.errors import NodeError

    async def ask(name: str, driver: Driver) -> tuple[str, tuple[Observed, ...] | NodeError]:
        try:
            return name, await driver.observe()
        except NodeError as error:
            return name, error

    answers = await asyncio.gather(*(ask(name, driver) for name, driver in drivers.items()))
    found = [each for _, answer in answers if not isinstance(answer, NodeError) for each in answer]
    return tuple(found), {name: str(answer) for name, answer in answers if isinstance(answer, NodeError)}


def needs_of(wanted: Desired) -> dict[str, Need]:
    """Memory and warm-up requests of every engine, for ``Apply``."""
    from lmtower.cli.prefixes import prefix_requests
    from lmtower.engines.shapes import shape_requests
    from lmtower.nodes.apply import Need

    facts = {node.facts.name: node.facts for node in wanted.plan.nodes}
    needs = {}
    for name, row in wanted.rows.items():
        reserve = max((facts[node].reserve for node in row.nodes if node in facts), default=_written(wanted.tower, row))
        warm = (*shape_requests(row), *prefix_requests(wanted.tower, row))
        computed = row if row.weights_bytes else None
        needs[name] = Need(row.total_bytes, reserve, warm, computed, warm_later=row.runtime == "llamacpp")
    return needs


def _written(tower: Tower, row: EnginePlan) -> int:
    """The reserve of nodes for which nothing is planned."""
    return max((tower.nodes[node].reserve or 0 for node in row.nodes if node in tower.nodes), default=0)


def probes_of(wanted: Desired) -> dict[tuple[str, str], MemoryProbe]:
    """How free memory is asked for, by node and engine: on the engine's own GPUs, or on the machine.

    Nodes for which nothing is planned are asked where the file writes a reserve.
    """
    from lmtower.nodes.memory import probe_of

    facts = {node.facts.name: node.facts for node in wanted.plan.nodes}
    probes = {}
    for spec in wanted.specs:
        node, planned = wanted.tower.nodes.get(spec.node), facts.get(spec.node)
        if node is not None and (planned is not None or node.reserve):
            card = planned is not None and not planned.unified
            devices = wanted.rows[spec.engine].devices.get(spec.node, ())
            probes[spec.node, spec.engine] = probe_of(node.address, card=card, devices=devices)
    return probes
