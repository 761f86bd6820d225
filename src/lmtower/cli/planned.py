"""Serving on planned engines: a reload plans again, so that the gateway knows how the engines really run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lmtower.cli.desired import Desired, desired_of
from lmtower.cli.serving import Serving

if TYPE_CHECKING:
    from lmtower.config import Loaded
    from lmtower.gateway import Configuration


@dataclass(frozen=True, slots=True)
class PlannedServing(Serving):
    """``lmtower up``: lengths and slots come from the plan of the file as it is now.

    ``prime`` is told of each plan: engines then get the prefixes that are new.
    """

    prime: Callable[[Desired], None] = field(default=lambda _: None)

    def configuration(self, loaded: Loaded | None = None) -> Configuration:
        """As ``Serving``; raises PlanError too, and the old configuration then serves on."""
        loaded = loaded or self.options.load(self.overrides)
        wanted = desired_of(self.options, loaded)
        configuration = Serving.configuration(replace(self, plans=dict(wanted.rows)), loaded)
        self.prime(wanted)
        return configuration
