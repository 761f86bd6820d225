"""Keys: what they look like, what is stored of them, who finds them."""

from __future__ import annotations

import re
import time
from pathlib import Path

import msgspec
import pytest

from lmtower.config.types import Limits
from lmtower.errors import LedgerError, Refused, UnknownKey
from lmtower.ledger import keys
from lmtower.ledger.database import Database
from lmtower.ledger.keys import KeyTable


def _table(database: Database) -> KeyTable:
    table = KeyTable()
    table.refresh(database)
    return table


def test_secret_has_prefix_and_256_bits() -> None:
    """A secret is sk-lmt- and 43 URL-safe characters, new each time."""
    made = {keys.new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"sk-lmt-[A-Za-z0-9_-]{43}", secret) for secret in made)


def test_created_key_is_found_with_everything_it_was_given(database: Database) -> None:
    """Name, personas, limits and expiry come back as they were given."""
    limits = Limits(requests_per_minute=3, money_per_month=2.5)
    made = keys.create(database, "alice", ["plan", "fast"], limits, expires_at=4e9)
    found = _table(database).find(made.secret)
    assert found == made.client
    assert found is not None
    assert (found.name, found.personas, found.limits, found.expires_at) == (
        "alice", frozenset({"plan", "fast"}), limits, 4e9,
    )  # fmt: skip
    assert found.may_use("plan")
    assert not found.may_use("code")


def test_key_without_personas_may_use_all(database: Database) -> None:
    """No persona list is no limit, an empty one is none at all."""
    assert keys.create(database, "all").client.may_use("anything")
    made = keys.create(database, "none", [])
    found = _table(database).find(made.secret)
    assert found is not None
    assert not found.may_use("anything")


def test_secret_is_nowhere_in_the_files(tmp_path: Path) -> None:
    """Neither the database nor its write-ahead log holds the secret, and others may not read them."""
    database = Database(None, tmp_path)
    database.prepare()
    made = keys.create(database, "alice")
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert made.secret.encode() not in held
    assert made.secret.removeprefix(made.client.prefix).encode() not in held
    assert made.secret not in repr(made)
    assert (tmp_path / "ledger.db").stat().st_mode & 0o077 == 0
    database.close()


@pytest.mark.parametrize("token", ["", "sk-lmt-", "sk-lmt-" + "x" * 43, "Bearer", "ключ", "\ud800"])
def test_wrong_token_is_not_found(tmp_path: Path, token: str) -> None:
    """Anything but a key's secret finds nothing, and nothing raises."""
    database = Database(None, tmp_path)
    database.prepare()
    keys.create(database, "alice")
    assert _table(database).find(token) is None
    database.close()


def test_expired_key_is_not_found(database: Database) -> None:
    """An expired key ends by itself, without a refresh."""
    made = keys.create(database, "alice", expires_at=time.time() - 1)
    assert _table(database).find(made.secret) is None
    assert [row.state(time.time()) for row in keys.listed(database)] == ["expired"]


@pytest.mark.parametrize("handle", ["id", "name", "prefix", "secret"])
def test_revoked_key_is_not_found(database: Database, handle: str) -> None:
    """A key can be revoked by its id, name, shown beginning or itself, and stays in the list."""
    made = keys.create(database, "alice")
    other = keys.create(database, "bob")
    known = {"secret": made.secret, "id": made.client.id, "name": "alice", "prefix": made.client.prefix}
    assert keys.revoke(database, known[handle]) == made.client
    table = _table(database)
    assert table.find(made.secret) is None
    assert table.find(other.secret) == other.client
    assert [row.state(time.time()) for row in keys.listed(database)] == ["revoked", "active"]


def test_revoking_an_unknown_key_names_the_remedy_without_the_secret(database: Database) -> None:
    """The error says where to look, and does not repeat a secret."""
    with pytest.raises(LedgerError, match="lmtower key list"):
        keys.revoke(database, "nobody")
    secret = keys.new_secret()
    with pytest.raises(LedgerError) as caught:
        keys.revoke(database, secret)
    assert secret not in str(caught.value)


def test_revoking_an_ambiguous_name_lists_the_ids(database: Database) -> None:
    """Two active keys may share a name while they are rotated; revoking needs an id then."""
    first, second = keys.create(database, "alice"), keys.create(database, "alice")
    with pytest.raises(
        LedgerError, match=f"{first.client.id}, {second.client.id}|{second.client.id}, {first.client.id}"
    ):
        keys.revoke(database, "alice")
    keys.revoke(database, first.client.id)
    assert keys.revoke(database, "alice") == second.client


def test_refresh_reads_only_after_a_change(database: Database) -> None:
    """Polling costs one small query until somebody changes a key."""
    table = KeyTable()
    assert table.refresh(database)
    assert not table.refresh(database)
    made = keys.create(database, "alice")
    assert table.refresh(database)
    keys.revoke(database, made.client.id)
    assert table.refresh(database)
    assert len(table) == 0


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 201])
def test_unusable_name_is_refused(database: Database, name: str) -> None:
    """A name is one printable line."""
    with pytest.raises(Refused, match="not a name"):
        keys.create(database, name)


def test_exist_remembers_revoked_keys(database: Database) -> None:
    """The first-run key is made once, not again after everything was revoked."""
    assert not keys.exist(database)
    keys.revoke(database, keys.create(database, "alice").client.id)
    assert keys.exist(database)


def test_changed_key_keeps_its_secret_and_gets_what_was_asked(database: Database) -> None:
    """Limits, personas and end are replaced; the same token finds the new client; the rest stays."""
    made = keys.create(database, "alice", ["plan"], Limits(parallel=2), expires_at=4e9)
    table = _table(database)
    changed = keys.change(
        database,
        "alice",
        lambda client: msgspec.structs.replace(client, limits=Limits(tokens_per_day=5), personas=None),
    )
    assert table.refresh(database)
    assert table.find(made.secret) == changed
    assert (changed.id, changed.personas, changed.limits, changed.expires_at) == (
        made.client.id, None, Limits(tokens_per_day=5), 4e9,
    )  # fmt: skip


def test_change_of_a_revoked_key_or_to_a_bad_name_changes_nothing(database: Database) -> None:
    """The error names the remedy; the row stays."""
    made = keys.create(database, "alice")
    with pytest.raises(Refused, match="not a name"):
        keys.change(database, "alice", lambda client: msgspec.structs.replace(client, name=" "))
    keys.revoke(database, "alice")
    with pytest.raises(UnknownKey, match="lmtower key list"):
        keys.change(database, made.client.id, lambda client: client)
    (row,) = keys.listed(database)
    assert row.client == made.client
