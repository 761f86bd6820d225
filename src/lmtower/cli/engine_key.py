"""The key that engines ask the gateway for, in the data folder: made by the first ``up``, for its owner only."""

from __future__ import annotations

from pathlib import Path

from lmtower.cli.kept import kept_secret

_FILE = "engine.key"


def engine_key(data_dir: Path) -> str:
    """The key; made when there is none."""
    return kept_secret(data_dir / _FILE)


def existing_engine_key(data_dir: Path) -> str | None:
    """The key of engines that were started before; None when there is none."""
    return engine_key(data_dir) if (data_dir / _FILE).exists() else None
