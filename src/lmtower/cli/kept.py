"""Secrets that are made once and kept in the data folder: whole or not at all, readable by their owner only."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def kept_secret(path: Path, length: int = 32) -> str:
    """What the file holds; made (``length`` random bytes) when there is none. Raises OSError.

    An empty file is what a full disk left of an earlier try: it is no secret.
    """
    if path.exists() and (text := path.read_text("utf-8").strip()):
        return text
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(length) + "\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path.read_text("utf-8").strip()
