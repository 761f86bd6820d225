"""Clients: what one key is and may do."""

from __future__ import annotations

from typing import Any

import msgspec

from lmtower.config.types import Limits


class Client(msgspec.Struct, frozen=True):
    """A caller with a key. ``prefix`` is what may be shown of the key; the key itself is known only to its owner."""

    id: str
    name: str
    personas: frozenset[str] | None = None
    """Personas that the key may use; None: all."""
    limits: Limits | None = None
    """Limits of this key; None: those of the tower."""
    expires_at: float | None = None
    """Seconds since the epoch; None: never."""
    prefix: str = ""
    created_at: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Everything that may be shown, for JSON."""
        return {
            "id": self.id,
            "name": self.name,
            "prefix": self.prefix,
            "personas": None if self.personas is None else sorted(self.personas),
            "limits": None if self.limits is None else self.limits.model_dump(exclude_none=True),
            "created_at": self.created_at,
            "expires_at": self.expires_at,
        }

    def may_use(self, persona: str) -> bool:
        """Whether the key is valid for that persona."""
        return self.personas is None or persona in self.personas


class NewKey(msgspec.Struct, frozen=True):
    """A key just made: the only moment at which its secret is known. The secret stays out of ``repr``."""

    client: Client
    secret: str

    def __repr__(self) -> str:
        return f"NewKey(client={self.client!r}, secret='{self.client.prefix}…')"


class KeyRow(msgspec.Struct, frozen=True):
    """One line of ``key list``."""

    client: Client
    revoked_at: float | None = None

    def as_dict(self, now: float) -> dict[str, Any]:
        """Everything that may be shown, for JSON."""
        return {**self.client.as_dict(), "state": self.state(now), "revoked_at": self.revoked_at}

    def state(self, now: float) -> str:
        """``active``, ``expired`` or ``revoked``."""
        if self.revoked_at is not None:
            return "revoked"
        expires_at = self.client.expires_at
        return "expired" if expires_at is not None and expires_at <= now else "active"
