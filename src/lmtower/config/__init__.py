"""tower.yaml as a frozen, typed ``Tower``."""

from lmtower.config.address import parse_listen
from lmtower.config.load import Loaded, load
from lmtower.config.types import Tower
from lmtower.config.watched import Stamp, stamp

__all__ = ["Loaded", "Stamp", "Tower", "load", "parse_listen", "stamp"]
