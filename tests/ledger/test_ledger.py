"""The ledger as the gateway uses it: find, record, drain in the background, restart, several towers."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from lmtower.config.types import Limits, Price
from lmtower.errors import LedgerError, Refused
from lmtower.ledger import Ledger, LimitRefusal, Reservation, journal, keys
from lmtower.ledger import ledger as ledger_module
from lmtower.ledger.accounts import month_of
from tests.ledger.records import record


async def _until(condition: Callable[[], object], seconds: float = 5.0) -> float:
    """Wait for something that another thread or process brings about; the seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not happen"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def _requests(ledger: Ledger) -> int:
    return ledger.usage(()).total.requests


async def test_recorded_requests_reach_sql_by_themselves(tmp_path: Path, database_url: str) -> None:
    """The background drains what was recorded; the lag goes up and down again."""
    ledger = Ledger.open(tmp_path, database_url)
    await ledger.start()
    assert (ledger.lag_records, ledger.lag_seconds) == (0, 0.0)
    for number in range(1200):
        ledger.record(record(number))
    assert ledger.lag_records == 1200
    assert ledger.lag_seconds > 0
    await _until(lambda: ledger.lag_records == 0)
    assert ledger.lag_seconds == 0.0
    assert await asyncio.to_thread(_requests, ledger) == 1200
    await ledger.close()
    assert journal.segments(tmp_path / "journal") == []


async def test_key_made_and_revoked_elsewhere_is_seen_within_a_second(tmp_path: Path, database_url: str) -> None:
    """Another process makes and revokes keys; the running tower follows without a restart."""
    tower, elsewhere = Ledger.open(tmp_path / "a", database_url), Ledger.open(tmp_path / "b", database_url)
    await tower.start()
    made = await asyncio.to_thread(elsewhere.create_key, "alice")
    assert await _until(lambda: tower.find(made.secret)) < 1.0
    assert tower.find(made.secret) == made.client
    await asyncio.to_thread(elsewhere.revoke_key, "alice")
    assert await _until(lambda: tower.find(made.secret) is None) < 1.0
    await tower.close()
    await elsewhere.close()


async def test_own_keys_are_seen_at_once(tmp_path: Path) -> None:
    """The process that makes or revokes a key knows it when the call returns."""
    ledger = Ledger.open(tmp_path)
    made = ledger.create_key("alice")
    assert ledger.find(made.secret) == made.client
    assert ledger.key_count == 1
    ledger.revoke_key(made.client.id)
    assert ledger.find(made.secret) is None
    await ledger.close()


def test_sql_without_sqlalchemy(tmp_path: Path) -> None:
    """Once its tables are there, a tower on SQLite loads no library for keys, draining and reports (0.4 s of CPU)."""
    Ledger.open(tmp_path).first_key("first")
    code = (
        "import sys, pathlib; from lmtower.ledger import Ledger, UsageRecord; "
        f"ledger = Ledger.open(pathlib.Path({str(tmp_path)!r})); "
        "ledger.record(UsageRecord(request_id='a', time=1.0)); "
        "ledger.create_key('second'); ledger.revoke_key('first'); print(ledger.usage().total.requests); ledger.shut(); "
        "print([module for module in ('sqlalchemy', 'alembic', 'structlog') if module in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n[]\n"


def test_first_key_is_made_once(tmp_path: Path) -> None:
    """The first run gets a key; later runs do not, even after it was revoked."""
    ledger = Ledger.open(tmp_path)
    secret = ledger.first_key("first")
    assert secret is not None
    assert ledger.first_key("first") is None
    ledger.revoke_key("first")
    ledger.shut()
    again = Ledger.open(tmp_path)
    assert again.first_key("first") is None
    again.shut()


def test_new_data_folder_is_private_and_empty_until_needed(tmp_path: Path) -> None:
    """Opening makes a folder, no database: a start costs nothing that is not needed."""
    ledger = Ledger.open(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
    assert ledger.find("sk-lmt-x") is None
    ledger.shut()


def test_impossible_data_folder_is_a_ledger_error(tmp_path: Path) -> None:
    """The message names the folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="file/data"):
        Ledger.open(tmp_path / "file" / "data")


async def test_records_of_a_tower_that_died_are_drained_by_the_next(tmp_path: Path) -> None:
    """What a predecessor left in the journal counts as lag and reaches SQL."""
    left = journal.Journal(tmp_path / "journal")
    for number in range(7):
        left.append(record(number))
    left.close()
    ledger = Ledger.open(tmp_path)
    assert ledger.lag_records == 7
    assert ledger.lag_seconds > 0
    await ledger.start()
    await _until(lambda: ledger.lag_records == 0)
    assert await asyncio.to_thread(_requests, ledger) == 7
    await ledger.close()


async def test_sql_that_is_down_costs_no_request_and_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records wait in the journal, the error is counted, and everything arrives when SQL is back."""
    monkeypatch.setattr(ledger_module, "RETRY_SECONDS", 0.05)
    ledger = Ledger.open(tmp_path)
    made = ledger.create_key("alice")

    def down(*_: object) -> object:
        raise LedgerError("the database failed: it is down")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module.drain, "drain", down)
        await ledger.start()
        ledger.record(record(1))
        await _until(lambda: ledger.sql_errors >= 2)
        assert ledger.find(made.secret) == made.client
        assert ledger.lag_records == 1
    await _until(lambda: ledger.lag_records == 0)
    assert await asyncio.to_thread(_requests, ledger) == 1
    await ledger.close()


async def test_closing_while_sql_is_down_keeps_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop does not fail and loses nothing: the next start drains."""
    ledger = Ledger.open(tmp_path)
    ledger.record(record(1))

    def down(*_: object) -> object:
        raise LedgerError("down")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module.drain, "drain", down)
        await ledger.close()
    again = Ledger.open(tmp_path)
    assert _requests(again) == 1
    again.shut()


async def test_full_disk_is_survived_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests go on while the disk refuses; their records are written when it takes them again."""
    ledger = Ledger.open(tmp_path)
    await ledger.start()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "write", full)
        for number in range(3):
            ledger.record(record(number))
        assert (ledger.journal_errors, ledger.lag_records, ledger.dropped_records) == (3, 3, 0)
    await _until(lambda: ledger.lag_records == 0)
    assert await asyncio.to_thread(_requests, ledger) == 3
    await ledger.close()


def test_usage_includes_what_is_still_in_the_journal(tmp_path: Path) -> None:
    """A report never lags behind."""
    ledger = Ledger.open(tmp_path)
    ledger.record(record(1))
    assert _requests(ledger) == 1
    ledger.record(record(2))
    assert _requests(ledger) == 2
    with pytest.raises(Refused, match="Did you mean 'persona'"):
        ledger.usage(["personna"])
    ledger.shut()


def _use(ledger: Ledger, secret: str, persona: Limits, tokens: int, now: float) -> None:
    """What the gateway does for one request."""
    client = ledger.find(secret)
    assert client is not None
    held = ledger.limits.reserve(client, "plan", persona, Price(input=1.0), tokens, 1, now)
    assert isinstance(held, Reservation)
    cost = ledger.limits.settle(held, tokens, 0, 0, 1, now + 0.5)
    ledger.record(
        record(
            time=now,
            duration_seconds=0.5,
            client_id=client.id,
            input_tokens=tokens,
            output_tokens=0,
            images=1,
            cost=cost,
        )
    )


@pytest.mark.parametrize("drained", [True, False])
def test_limits_survive_a_restart(tmp_path: Path, database_url: str, drained: bool) -> None:
    """What was used before counts after, from SQL and from the journal; what is old does not."""
    now = time.time()
    own = Limits(
        requests_per_minute=4, tokens_per_minute=1000, tokens_per_day=1400, images_per_day=9, money_per_month=1
    )
    persona = Limits(tokens_per_minute=5000, images_per_day=9)
    first = Ledger.open(tmp_path, database_url)
    secret = first.create_key("alice", limits=own).secret
    first.configure(Limits(), {"plan": persona})
    _use(first, secret, persona, 500, now - 3600)
    for at in (50, 40, 30):
        _use(first, secret, persona, 200, now - at)
    if drained:
        first.drain()
    first._journal.close()  # as if killed: nothing drains
    first._database.close()

    second = Ledger.open(tmp_path, database_url)
    second.configure(Limits(), {"plan": persona})
    client = second.find(secret)
    assert client is not None
    assert second.limits.reserve(client, "plan", persona, None, 301, 0, now).reason == "tokens_per_day"  # type: ignore[union-attr]
    held = second.limits.reserve(client, "plan", persona, None, 300, 0, now)
    assert isinstance(held, Reservation)
    by_key, by_persona = second.limits.accounts()
    assert by_key.requests_minute.used(now) == 4
    assert by_key.tokens_minute.used(now) == 600
    assert by_key.tokens_day.used(now) == 1100
    assert by_key.images_day.used(now) == by_persona.images_day.used(now) == 4
    before = 500e-6 if now - 3600 >= month_of(now)[0] else 0.0
    assert by_key.spent_in_month(now) == pytest.approx(before + 600e-6)
    assert by_persona.tokens_minute.used(now) == 600
    refusal = second.limits.reserve(client, "plan", persona, None, 0, 0, now)
    assert isinstance(refusal, LimitRefusal)
    assert refusal.reason == "requests_per_minute"
    second.shut()


def test_reload_that_adds_a_limit_counts_what_was_used_before(tmp_path: Path) -> None:
    """A limit that is new to a running tower does not begin at zero; known ones are not counted twice."""
    now = time.time()
    ledger = Ledger.open(tmp_path)
    secret = ledger.create_key("alice").secret
    ledger.configure(Limits(), {"plan": Limits()})
    _use(ledger, secret, Limits(), 100, now - 30)
    limited = Limits(tokens_per_minute=1000)
    ledger.configure(limited, {"plan": Limits()})
    _use(ledger, secret, Limits(), 100, now - 20)
    ledger.configure(limited, {"plan": limited})
    _use(ledger, secret, limited, 100, now - 10)
    assert [account.tokens_minute.used(now) for account in ledger.limits.accounts()] == [300, 300]
    ledger.shut()


def test_reload_that_adds_a_longer_limit_counts_the_whole_day(tmp_path: Path) -> None:
    """From a limit per minute to one per day: what was used before this process began counts too, once."""
    now = time.time()
    first = Ledger.open(tmp_path)
    secret = first.create_key("alice").secret
    _use(first, secret, Limits(), 100, now - 3600)
    first.shut()
    ledger = Ledger.open(tmp_path)
    ledger.configure(Limits(requests_per_minute=9), {})
    _use(ledger, secret, Limits(), 100, now - 20)
    ledger.configure(Limits(requests_per_minute=9, tokens_per_day=250, money_per_month=1), {})
    (account,) = ledger.limits.accounts()
    assert account.tokens_day.used(now) == 200
    before = 100e-6 if now - 3600 >= month_of(now)[0] else 0.0
    assert account.spent_in_month(now) == pytest.approx(before + 100e-6)
    assert account.requests_minute.used(now) == 1
    client = ledger.find(secret)
    assert client is not None
    refusal = ledger.limits.reserve(client, "plan", None, None, 51, 0, now)
    assert isinstance(refusal, LimitRefusal)
    assert refusal.reason == "tokens_per_day"
    ledger.shut()


async def test_limit_that_a_key_gets_later_counts_what_it_used_before(tmp_path: Path, database_url: str) -> None:
    """Changed by another process while the tower runs: the day so far counts, from before the tower's start too."""
    now = time.time()
    elsewhere = Ledger.open(tmp_path / "other", database_url)
    secret = elsewhere.create_key("alice").secret
    _use(elsewhere, secret, Limits(), 100, now - 3600)
    elsewhere.drain()
    tower = Ledger.open(tmp_path / "tower", database_url)
    tower.configure(Limits(requests_per_minute=9), {})
    await tower.start()
    _use(tower, secret, Limits(), 100, now - 20)
    limits = Limits(requests_per_minute=9, tokens_per_day=250)
    edit = lambda client: msgspec.structs.replace(client, limits=limits)  # noqa: E731
    await asyncio.to_thread(elsewhere.change_key, "alice", edit)
    assert await _until(lambda: (found := tower.find(secret)) and found.limits == limits) < 2.0
    client = tower.find(secret)
    assert client is not None
    await asyncio.sleep(0)
    refusal = tower.limits.reserve(client, "plan", None, None, 51, 0, now)
    assert isinstance(refusal, LimitRefusal)
    assert isinstance(tower.limits.reserve(client, "plan", None, None, 50, 0, now), Reservation)
    await tower.close()
    await elsewhere.close()


def test_opening_does_not_import_sql(tmp_path: Path) -> None:
    """A restart with keys on SQLite loads neither SQLAlchemy nor Alembic: 0.8 s and 25 MB."""
    import subprocess
    import sys

    ledger = Ledger.open(tmp_path)
    secret = ledger.create_key("alice").secret
    ledger.shut()
    code = (
        "import sys; from pathlib import Path\n"
        "from lmtower.config.types import Limits; from lmtower.ledger import Ledger\n"
        "ledger = Ledger.open(Path(sys.argv[1])); ledger.configure(Limits(parallel=1), {})\n"
        "assert ledger.find(sys.argv[2]).name == 'alice'; ledger.shut()\n"
        "print([name for name in ('sqlalchemy', 'alembic', 'psycopg') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path, secret], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_old_schema_is_migrated_at_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade of lmtower upgrades the database before keys are read."""
    ledger = Ledger.open(tmp_path)
    secret = ledger.create_key("alice").secret
    ledger.shut()
    called = []
    monkeypatch.setattr(keys.Database, "is_current", lambda self: called.append(self))
    again = Ledger.open(tmp_path)
    assert called
    assert again.find(secret) is not None
    again.shut()
