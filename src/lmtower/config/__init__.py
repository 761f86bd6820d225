"""tower.yaml as a frozen, typed ``Tower``."""

from lmtower.config.address import parse_listen
from lmtower.config.load import Loaded, load
from lmtower.config.types import Tower

__all__ = ["Loaded", "Tower", "load", "parse_listen"]
