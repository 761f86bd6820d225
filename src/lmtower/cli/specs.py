"""LaunchSpecs of a tower file without touching a machine: what ``lmtower render`` writes down."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lmtower.cli.globals import Globals
from lmtower.errors import PlanError, Refused

if TYPE_CHECKING:
    from lmtower.config.types import Tower
    from lmtower.engines import LaunchSpec
    from lmtower.plan.types import Plan

_PLACEHOLDER = "set-me"  # rendered files refer to secrets by name; the builder only has to know that there is one


def specs_of(options: Globals, tower: Tower, python: str = "/opt/lmtower/bin/python") -> tuple[LaunchSpec, ...]:
    """Every engine that somebody has to start, in start order. Raises Refused when there is none or it does not fit."""
    from lmtower.engines import Outside, build_specs

    plan = plan_of(tower)
    if not plan.engines:
        raise Refused("every engine is external (url:): there is nothing to start, so nothing to render.")
    token = _PLACEHOLDER if options.environ.get("HF_TOKEN") else None
    return build_specs(plan, tower, Outside(_PLACEHOLDER, token, python))


def plan_of(tower: Tower) -> Plan:
    """The plan from the hardware catalogue; engines that are child processes are taken as written."""
    from lmtower.cli.fleet import child_plans
    from lmtower.cli.upstreams import is_external
    from lmtower.plan.solve import plan
    from lmtower.plan.types import Plan

    children = child_plans(tower)
    known = {row.name for row in children}
    rest = {name: e for name, e in tower.engines.items() if name not in known and not is_external(e)}
    if not rest:
        return Plan(children, (), fits=True)
    nodes = {name: node for name, node in tower.nodes.items() if node.hardware}
    planned = plan(tower.model_copy(update={"engines": rest, "nodes": nodes}))
    if not planned.fits:
        raise PlanError("\n".join(planned.reasons))
    last = len(planned.engines)
    later = (replace(row, start_order=last + row.start_order) for row in children)
    return replace(planned, engines=(*planned.engines, *later))
