"""``HOST:PORT`` as the tower file writes it."""

from __future__ import annotations

import re

_LISTEN = re.compile(r"^(\[[0-9A-Fa-f:.]+\]|[^:\s\[\]/]*):(\d{1,5})$")


def parse_listen(text: str) -> tuple[str, int]:
    """``0.0.0.0:8080`` -> ("0.0.0.0", 8080); ``[::]:8080`` -> ("::", 8080). Without a host: everywhere.

    Raises ValueError with what to write instead.
    """
    match = _LISTEN.match(text)
    if match is None or int(match[2]) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT. Write it as 0.0.0.0:8080 or [::]:8080")
    return match[1].strip("[]") or "0.0.0.0", int(match[2])
