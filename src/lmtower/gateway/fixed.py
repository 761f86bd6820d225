"""What a reload cannot change, because it was opened at start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from lmtower.config.types import Tower

_FIXED: Mapping[str, Callable[[Tower], Any]] = MappingProxyType(
    {
        "gateway.listen": lambda tower: tower.gateway.listen,
        "gateway.admin": lambda tower: tower.gateway.admin,
        "gateway.tls": lambda tower: tower.gateway.tls is None,  # other files, and renewed ones, are read
        "database": lambda tower: tower.database,
        "redis": lambda tower: tower.redis,
        "stores.listen": lambda tower: tower.stores.listen,
        "observability.tracing": lambda tower: tower.observability.tracing,
        "observability.max_clients": lambda tower: tower.observability.max_clients,
    }
)


def needs_restart(started: Tower, current: Tower) -> tuple[str, ...]:
    """Keys of the tower file that say something else than at start, and take effect only at the next one."""
    return tuple(key for key, value in _FIXED.items() if value(started) != value(current))
