"""The four dashboards."""

from lmtower.telemetry.dashboards.clients import CLIENTS
from lmtower.telemetry.dashboards.engines import ENGINES
from lmtower.telemetry.dashboards.overview import OVERVIEW
from lmtower.telemetry.dashboards.prefix_cache import PREFIX_CACHE

BOARDS = (OVERVIEW, PREFIX_CACHE, ENGINES, CLIENTS)

__all__ = ["BOARDS", "CLIENTS", "ENGINES", "OVERVIEW", "PREFIX_CACHE"]
