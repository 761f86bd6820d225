"""Desired against observed: what to start, stop, replace and keep. Pure; engines are compared by spec hash.

Only the launch spec counts, so a persona edit never touches an engine and a second ``up`` does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lmtower.engines.spec import LaunchSpec
from lmtower.nodes.drivers.base import Observed, stopped_on_purpose

Action = Literal["start", "stop", "replace", "keep"]


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the diff. ``spec`` is None when the engine is to be stopped."""

    action: Action
    engine: str
    node: str
    name: str
    why: str
    spec: LaunchSpec | None = None

    @property
    def touches(self) -> bool:
        """True when a running engine is interrupted: such a diff is confirmed first."""
        return self.action in ("stop", "replace")


def diff(desired: Sequence[LaunchSpec], observed: Sequence[Observed]) -> tuple[Step, ...]:
    """Stops first, so that their memory is free, then the rest in the order of ``desired``."""
    found = {(each.node, each.name): each for each in observed}
    wanted = {(spec.node, spec.name) for spec in desired}
    stops = [
        Step("stop", each.engine, each.node, each.name, "not in the tower file any more")
        for key, each in found.items()
        if key not in wanted
    ]
    return (*stops, *(_step(spec, found.get((spec.node, spec.name))) for spec in desired))


def _step(spec: LaunchSpec, found: Observed | None) -> Step:
    if found is None:
        return Step("start", spec.engine, spec.node, spec.name, "not there yet", spec)
    if stopped_on_purpose(spec, found):
        return Step("start", spec.engine, spec.node, spec.name, "its node's watchdog stopped it for memory", spec)
    if not found.running and not found.returns:
        return Step("start", spec.engine, spec.node, spec.name, f"it ended (exit {found.exit_code})", spec)
    if found.spec_hash != spec.spec_hash:
        return Step("replace", spec.engine, spec.node, spec.name, "its flags, image or environment changed", spec)
    return Step("keep", spec.engine, spec.node, spec.name, "runs as it should", spec)
