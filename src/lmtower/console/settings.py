"""What the command line hands to the console. Secrets are read when they are needed, and never shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmtower.config.types import Tower

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the tower answers and how its file is read. ``read`` and ``plan`` may block; they run in a thread."""

    admin_url: str
    gateway_url: str
    data_dir: Path
    read: Callable[[], Tower]
    """The tower file as it is now. Raises ConfigError."""
    plan: Callable[[], Json] | None = None
    """What ``lmtower plan --json`` prints. Raises TowerError."""
    local_memory: Callable[[], Mapping[str, Mapping[str, float]]] = dict
    """Total and available bytes of nodes that are this machine; for those whose agent does not run."""
    stores_url: str | None = None
    prometheus_url: str | None = None
    hosts: frozenset[str] = frozenset()
    """Host names besides localhost and plain addresses that the console answers to."""
    sample_seconds: float = 2.0
    verify: bool = True
    """Check the gateway's certificate; off for this machine's own address, which no certificate names."""

    def secret(self, name: str) -> str | None:
        """The content of a key file in the data folder; None when it cannot be read."""
        try:
            return (self.data_dir / name).read_text("utf-8").strip() or None
        except OSError:
            return None
