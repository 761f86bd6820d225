"""LaunchSpecs of a tower file without touching a machine: what ``lmtower render`` writes down."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmtower.cli.globals import Globals
from lmtower.errors import PlanError

if TYPE_CHECKING:
    from lmtower.config import Loaded
    from lmtower.engines import LaunchSpec

_PLACEHOLDER = "set-me"  # rendered files refer to secrets by name; the builder only has to know that there is one


def specs_of(options: Globals, loaded: Loaded, python: str = "/opt/lmtower/bin/python") -> tuple[LaunchSpec, ...]:
    """Every engine that somebody has to start, in start order; none when all are external. Raises PlanError."""
    from lmtower.cli.desired import plan_of
    from lmtower.cli.engine_key import existing_engine_key
    from lmtower.cli.measured import Known
    from lmtower.engines import Outside, build_specs

    known = Known.read(options.data_dir)
    plan = plan_of(loaded, options.environ, known)
    if not plan.fits:
        raise PlanError("\n".join(plan.reasons))
    # never written, but part of the hash in the labels: engines rendered from here are those that `up` would start
    key = existing_engine_key(options.data_dir) or _PLACEHOLDER
    token = _PLACEHOLDER if options.environ.get("HF_TOKEN") else None
    return build_specs(plan, known.engines(loaded.tower), Outside(key, token, python))
