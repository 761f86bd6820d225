"""The key that engines ask the gateway for, in the data folder: made by the first ``up``, for its owner only."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

_FILE = "engine.key"


def engine_key(data_dir: Path) -> str:
    """The key; made when there is none."""
    path = data_dir / _FILE
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    return path.read_text("utf-8").strip()


def existing_engine_key(data_dir: Path) -> str | None:
    """The key of engines that were started before; None when there is none."""
    return engine_key(data_dir) if (data_dir / _FILE).exists() else None
