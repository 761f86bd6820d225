"""The console's own client key: made on first use, kept in the data folder, readable by its owner only."""

from __future__ import annotations

import os
from pathlib import Path

from lmtower.console.tower import Tower

NAME = "console"


class ClientKey:
    """With it the try-it box asks personas, so that its use is in the ledger like everybody's."""

    def __init__(self, data_dir: Path, tower: Tower) -> None:
        self._path = data_dir / "console.key"
        self._tower = tower
        self._secret: str | None = None

    def __repr__(self) -> str:
        return f"ClientKey({str(self._path)!r})"

    async def get(self, admin_key: str) -> str:
        """The key; a new one when there is none. Raises AdminError."""
        if self._secret is None:
            self._secret = self._stored() or await self.renew(admin_key)
        return self._secret

    async def renew(self, admin_key: str) -> str:
        """Make another one, after somebody revoked the old. Raises AdminError."""
        made = await self._tower.post(admin_key, "/admin/keys", {"name": NAME})
        self._secret = str(made["key"])
        self._keep(self._secret)
        return self._secret

    def _stored(self) -> str | None:
        try:
            return self._path.read_text("utf-8").strip() or None
        except OSError:
            return None

    def _keep(self, secret: str) -> None:
        temporary = self._path.with_suffix(".tmp")
        try:
            temporary.unlink(missing_ok=True)
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secret + "\n")
            temporary.replace(self._path)
        except OSError:
            # a console without write access to the data folder keeps the key in memory
            return
