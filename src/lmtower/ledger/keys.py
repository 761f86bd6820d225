"""Clients' keys: made once, stored as SHA-256, found by one dict lookup."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from typing import Any

import msgspec

from lmtower.config.types import Limits
from lmtower.errors import Refused, UnknownKey
from lmtower.ledger.client import Client, KeyRow, NewKey
from lmtower.ledger.database import Database, Execute

PREFIX = "sk-lmt-"
_SHOWN = len(PREFIX) + 6
_COLUMNS = "id, name, key_sha256, prefix, personas, limits, created_at, expires_at, revoked_at"


def new_secret() -> str:
    """``sk-lmt-`` and 43 URL-safe characters: 256 bits, so that a plain hash is enough at rest."""
    return PREFIX + secrets.token_urlsafe(32)


class KeyTable:
    """Every usable key in memory, by the SHA-256 of its secret. Replaced as a whole when keys change."""

    def __init__(self) -> None:
        self._clients: Mapping[bytes, Client] = {}
        self._version: object = None

    def __len__(self) -> int:
        return len(self._clients)

    @property
    def state(self) -> object:
        """Another object after each change."""
        return self._clients

    def clients(self) -> tuple[Client, ...]:
        """All of them."""
        return tuple(self._clients.values())

    def find(self, token: str) -> Client | None:
        """The client with that key; None when there is none, or it expired, or it was revoked."""
        client = self._clients.get(sha256(token.encode("utf-8", "surrogatepass")).digest())
        if client is not None and client.expires_at is not None and client.expires_at <= time.time():
            return None
        return client

    def named(self, name: str) -> Client | None:
        """The client of that name: of several keys that share it, the newest that is valid."""
        now = time.time()
        valid = [
            one
            for one in self._clients.values()
            if one.name == name and (one.expires_at is None or one.expires_at > now)
        ]
        return max(valid, key=lambda one: one.created_at, default=None)

    def refresh(self, database: Database, prepare: Callable[[Iterable[Client]], None] | None = None) -> bool:
        """Read the keys again if any process changed them. Blocks. Returns whether they were read.

        ``prepare`` gets them before anybody can find them.
        """
        # The version is read first: a change in between is read once too often, never missed.
        rows = database.query("SELECT version FROM changes WHERE name = 'clients'")
        version = database.file(), rows
        if version == self._version:
            return False
        found = database.query(f"SELECT {_COLUMNS} FROM clients WHERE revoked_at IS NULL")
        clients = {bytes.fromhex(row[2]): _client(row) for row in found}
        if prepare is not None:
            prepare(clients.values())
        self._clients = clients
        self._version = version
        return True


def create(
    database: Database,
    name: str,
    personas: Iterable[str] | None = None,
    limits: Limits | None = None,
    expires_at: float | None = None,
) -> NewKey:
    """Make a key and store its hash. Several keys may share a name (to rotate them). Blocks. Raises LedgerError."""
    _check_name(name)
    secret = new_secret()
    client = Client(
        id=f"key_{secrets.token_hex(8)}",
        name=name,
        personas=frozenset(personas) if personas is not None else None,
        limits=limits,
        expires_at=expires_at,
        prefix=secret[:_SHOWN],
        created_at=time.time(),
    )
    row = {"key_sha256": sha256(secret.encode()).hexdigest(), **_row(client)}
    with database.transaction() as execute:
        _bump(execute)
        places = ", ".join("?" * len(row))
        execute(f"INSERT INTO clients ({', '.join(row)}) VALUES ({places})", tuple(row.values()))
    return NewKey(client, secret)


def revoke(database: Database, id_or_name: str) -> Client:
    """Revoke the one active key with that id, name, shown prefix or secret. Blocks. Raises LedgerError."""
    with database.transaction() as execute:
        client = _active(execute, id_or_name)
        execute("UPDATE clients SET revoked_at = ? WHERE id = ?", (time.time(), client.id))
    return client


def change(database: Database, id_or_name: str, edit: Callable[[Client], Client]) -> Client:
    """Replace what one active key may do by ``edit`` of it; its secret stays. Blocks. Raises LedgerError."""
    with database.transaction() as execute:
        old = _active(execute, id_or_name)
        client = edit(old)
        _check_name(client.name)
        row = _row(client)
        execute(
            "UPDATE clients SET name = ?, personas = ?, limits = ?, expires_at = ? WHERE id = ?",
            (row["name"], row["personas"], row["limits"], row["expires_at"], old.id),
        )
    return client


def _active(execute: Execute, id_or_name: str) -> Client:
    """The one active key that is meant. Takes the write lock first: nobody changes it in between."""
    _bump(execute)
    # The caller may hold the secret itself: then its hash finds it.
    hashed = sha256(id_or_name.encode("utf-8", "surrogatepass")).hexdigest()
    rows = execute(
        f"SELECT {_COLUMNS} FROM clients "
        "WHERE revoked_at IS NULL AND (id = ? OR name = ? OR prefix = ? OR key_sha256 = ?)",
        (id_or_name, id_or_name, id_or_name, hashed),
    )
    if not rows:
        shown = id_or_name[:_SHOWN] if id_or_name.startswith(PREFIX) else id_or_name
        raise UnknownKey(f"no active key has the id or name {shown!r}; `lmtower key list` shows them")
    if len(rows) > 1:
        ids = ", ".join(row[0] for row in rows)
        raise UnknownKey(f"{len(rows)} active keys match {id_or_name!r}; name one by its id: {ids}")
    return _client(rows[0])


def _check_name(name: str) -> None:
    if not name.strip() or len(name) > 200 or not name.isprintable():
        raise Refused(f"{name!r} is not a name for a key; use 1 to 200 printable characters")


def listed(database: Database) -> tuple[KeyRow, ...]:
    """Every key, oldest first, the revoked ones too. Blocks."""
    rows = database.query(f"SELECT {_COLUMNS} FROM clients ORDER BY created_at, id")
    return tuple(KeyRow(_client(row), row[8]) for row in rows)


def exist(database: Database) -> bool:
    """Whether there is or was any key. Blocks."""
    return bool(database.query("SELECT 1 FROM clients LIMIT 1"))


def _bump(execute: Execute) -> None:
    execute("UPDATE changes SET version = version + 1 WHERE name = 'clients'", ())


def _row(client: Client) -> dict[str, Any]:
    return {
        "id": client.id,
        "name": client.name,
        "prefix": client.prefix,
        "personas": None if client.personas is None else msgspec.json.encode(sorted(client.personas)).decode(),
        "limits": None if client.limits is None else client.limits.model_dump_json(exclude_none=True),
        "created_at": client.created_at,
        "expires_at": client.expires_at,
    }


def _client(row: tuple[Any, ...]) -> Client:
    personas, limits = row[4], row[5]
    return Client(
        id=row[0],
        name=row[1],
        personas=None if personas is None else frozenset(msgspec.json.decode(personas, type=list[str])),
        limits=None if limits is None else Limits.model_validate_json(limits),
        expires_at=row[7],
        prefix=row[3],
        created_at=row[6],
    )
