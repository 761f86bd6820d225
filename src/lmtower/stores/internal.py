"""The secret by which the processes of one tower know each other. Light: the CLI imports it before anything else."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from lmtower.config.folder import INTERNAL_KEY


def read_or_create(data_dir: Path) -> str:
    """The secret in the data folder, made at first use, readable by the owner only."""
    path = data_dir / INTERNAL_KEY
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with os.fdopen(descriptor, "w") as file:
        secret = secrets.token_urlsafe(32)
        file.write(secret + "\n")
    return secret
