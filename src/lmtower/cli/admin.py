"""A client of the running tower's admin API, found through the data folder."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmtower.errors import AdminError


@dataclass(frozen=True, slots=True)
class Admin:
    """``address`` is the admin listener as HOST:PORT; the key never shows in ``repr``."""

    address: str
    _key: str

    def __repr__(self) -> str:
        return f"Admin({self.address!r})"

    @classmethod
    def of_running_tower(cls, data_dir: Path) -> Admin:
        """Reads ``tower.json`` and ``admin.key``. Raises AdminError when no tower has written them."""
        try:
            state = json.loads((data_dir / "tower.json").read_text("utf-8"))
            key = (data_dir / "admin.key").read_text("utf-8").strip()
        except (OSError, ValueError) as exc:
            raise AdminError(
                f"no tower runs on {data_dir}: start it with lmtower up, or name its folder with --data-dir."
            ) from exc
        return cls(str(state["admin"]), key)

    def get(self, path: str) -> Any:
        """The JSON answer of a GET. Raises AdminError."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: object = None, *, timeout: float = 30.0) -> Any:
        """The JSON answer of a POST. Raises AdminError."""
        return self._ask("POST", path, body, timeout)

    def delete(self, path: str) -> Any:
        """The JSON answer of a DELETE. Raises AdminError."""
        return self._ask("DELETE", path, None)

    def _ask(self, method: str, path: str, body: object, timeout: float = 30.0) -> Any:
        host, _, port = self.address.rpartition(":")
        connection = http.client.HTTPConnection(_reachable(host), int(port), timeout=timeout)
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body).encode(), headers)
            reply = connection.getresponse()
            answer = reply.read()
        except (OSError, http.client.HTTPException) as exc:
            raise AdminError(
                f"no tower answers on {self.address} ({exc or type(exc).__name__}): is it still running?"
            ) from exc
        finally:
            connection.close()
        return _decode(method, path, reply.status, answer)


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "[::]": "::1", "": "127.0.0.1"}.get(host, host.strip("[]"))


def _decode(method: str, path: str, status: int, answer: bytes) -> Any:
    try:
        value = json.loads(answer) if answer.strip() else None
    except ValueError:
        value = answer.decode("utf-8", "replace")
    if status < 400:
        return value
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict) and error.get("message"):
        raise AdminError(str(error["message"]))  # a sentence of ours: it says what happened and what to do
    raise AdminError(f"the tower refused {method} {path} ({status}): {error or value}")
