"""The ledger as the rest of lmtower sees it: find a client, record a request, keep limits, report usage.

``find``, ``record`` and ``limits`` are for the event loop: memory and at most one ``write``, never SQL, never
``await``. ``start`` runs two threads in the background: one looks for changed keys, one moves the journal into SQL,
in a process of its own when there is much to move (``mover``). Everything else (``create_key``, ``usage``, ...) blocks
and is for the CLI or a thread.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmtower.config.types import Limits
from lmtower.errors import LedgerError
from lmtower.ledger import drain, history, journal, keys
from lmtower.ledger.accounts import kinds_of
from lmtower.ledger.client import Client, KeyRow, NewKey
from lmtower.ledger.database import Database
from lmtower.ledger.keys import KeyTable
from lmtower.ledger.limits import LocalLimits
from lmtower.ledger.mover import Mover
from lmtower.ledger.record import UsageRecord
from lmtower.logs import get_logger

if TYPE_CHECKING:
    from lmtower.ledger.report import Report

KEY_POLL_SECONDS = 0.4
DRAIN_SECONDS = 0.5
MANY_RECORDS = 250
"""From here on a process of its own moves them: a thread would hold the event loop up for longer than 5 ms."""
MOVER_SECONDS = 60.0
"""How long that process stays without work."""
RETRY_SECONDS = 5.0


class Ledger:
    """Keys, limits and usage of one tower process."""

    def __init__(self, data_dir: Path, database: Database, limits: LocalLimits) -> None:
        self.limits = limits
        self.sql_errors = 0
        """Failed rounds of background SQL work since the start."""
        self.torn_records = 0
        """Journal lines that could not be read back."""
        self._database = database
        self._folder = data_dir / "journal"
        self._journal = journal.Journal(self._folder)
        self._keys = KeyTable()
        self._prepared = False
        self._limited: set[tuple[str, str]] = set()
        self._prepare_lock = threading.Lock()
        self._mover = Mover(self._folder, database)
        self._mover_used = 0.0
        self._drained = -journal.count(
            self._folder
        )  # of what this process wrote; what was there before counts below zero
        self._pending_since: float | None = drain.oldest_pending_time(self._folder)
        self._disk_failing = False
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = threading.Event()
        self._log = get_logger()

    @classmethod
    def open(cls, data_dir: Path, url: str | None = None, redis: str | None = None) -> Ledger:
        """The ledger in ``data_dir``, keys loaded. ``url`` and ``redis`` are the tower file's. Raises LedgerError."""
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise LedgerError(f"cannot make the data folder {str(data_dir)!r}: {exc.strerror}") from exc
        ledger = cls(data_dir, Database(url, data_dir), _limits(redis))
        if ledger._database.exists():  # a new SQLite file has no keys; it is made when something needs it
            ledger._prepare()
            ledger._keys.refresh(ledger._database)
        return ledger

    # The hot path

    def find(self, token: str) -> Client | None:
        """The client with that key; None when it is unknown, expired or revoked."""
        return self._keys.find(token)

    @property
    def keys(self) -> object:
        """Another object after each change of any key. While it is the same, what ``find`` gave still holds, but for
        keys that expire."""
        return self._keys.state

    def named(self, name: str) -> Client | None:
        """The newest valid key of that name; None when there is none."""
        return self._keys.named(name)

    def record(self, record: UsageRecord) -> None:
        """Write one finished request to the journal. Never raises: what the disk refuses waits in memory."""
        self.hold(record)
        self.flush()

    def hold(self, record: UsageRecord) -> None:
        """Keep a finished request for the next ``flush``, which writes several at the price of one."""
        if self._pending_since is None:
            self._pending_since = time.time()
        self._journal.add(record)

    def flush(self) -> None:
        """Write what is held. Never raises."""
        if not self._journal.flush():
            if not self._disk_failing:
                self._disk_failing = True
                self._log.error("journal_write_failed", folder=str(self._folder), error=str(self._journal.last_error))
        elif self._disk_failing:
            self._disk_failing = False
            self._log.info("journal_write_recovered", folder=str(self._folder))

    def configure(self, default: Limits, personas: Mapping[str, Limits]) -> None:
        """Take over the limits of a tower file, at the start and at each reload, before it serves.

        What was used before counts against limits that are new to this process. Blocks (reads the last day and
        month, only when something is limited). Raises LedgerError.
        """
        personas_limits = {f"persona {name}": limits for name, limits in personas.items()}
        wanted = _spans({**personas_limits, "default": default}) | _spans_of_keys(self._keys.clients())
        if wanted - self._limited:
            found = self._look_back(wanted)
            for account in self.limits.accounts():
                found.replace(account)
        self._limited |= wanted
        self.limits.default = default
        self.limits.follow(_limits_of(self._keys.clients()), personas)

    def _follow_limits(self, clients: Iterable[Client]) -> None:
        """Limits that a key gets while the tower runs count what it used before. Runs in the thread of the keys."""
        wanted = _spans_of_keys(clients)
        known = {f"key {client.id}" for client in self._keys.clients()}  # a new key has used nothing
        changed = {name for name, _ in wanted - self._limited} & known
        if changed and self._loop is not None:
            found = self._look_back(wanted | self._limited)
            self._loop.call_soon_threadsafe(self._take_over, found, changed)
        self._limited |= wanted
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.limits.follow, _limits_of(clients))

    def _take_over(self, found: history.History, names: set[str]) -> None:
        for account in self.limits.accounts():
            if f"{account.scope} {account.name}" in names:
                found.replace(account)

    def _look_back(self, wanted: set[tuple[str, str]]) -> history.History:
        """What was used in the spans that are limited now; new accounts begin with it."""
        if not self._database.exists():
            return history.History({}, time.time())
        self._prepare()
        day, month = (any(kind == span for _, kind in wanted) for span in ("day", "month"))
        with journal.still(self._folder):
            found = history.read(self._database, self._folder, time.time(), day=day, month=month)
        self.limits.history = found.fill
        return found

    # Numbers for telemetry

    @property
    def lag_records(self) -> int:
        """Records that are not in SQL yet."""
        return max(0, self._journal.written - self._drained) + self._journal.waiting

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest record that is not in SQL yet; 0 when there is none."""
        since = self._pending_since
        return max(0.0, time.time() - since) if since is not None and self.lag_records else 0.0

    @property
    def journal_errors(self) -> int:
        """Writes that the disk refused since the start."""
        return self._journal.errors

    @property
    def dropped_records(self) -> int:
        """Records lost because the disk refused for too long."""
        return self._journal.dropped

    @property
    def key_count(self) -> int:
        """Usable keys in memory."""
        return len(self._keys)

    def client_names(self) -> dict[str, str]:
        """Id -> name of every usable key in memory."""
        return {client.id: client.name for client in self._keys.clients()}

    # The background

    async def start(self) -> None:
        """Begin to follow key changes and to drain the journal, each in a thread that the loop does not hear of."""
        self._stopping.clear()
        self._loop = asyncio.get_running_loop()
        await self.limits.start()
        for work, seconds, failure in (
            (self._read_keys, KEY_POLL_SECONDS, "keys_not_read"),
            (self._move, DRAIN_SECONDS, "journal_not_drained"),
        ):
            thread = threading.Thread(target=self._repeat, args=(work, seconds, failure), name="ledger", daemon=True)
            thread.start()
            self._threads.append(thread)

    async def close(self) -> None:
        """Stop the background, drain what is left, close everything. What SQL does not take stays in the journal."""
        self._stopping.set()
        self._mover.kill()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._threads = []
        self._loop = None
        await self.limits.close()
        await asyncio.to_thread(self.shut)

    def shut(self) -> None:
        """``close`` for callers without an event loop. Blocks."""
        self._mover.close()
        self._journal.close()
        try:
            if self._journal.written:  # also when all of it is drained: the segment can be deleted now
                self.drain()
        except LedgerError as exc:
            self._log.error("journal_not_drained", error=str(exc), records=self.lag_records)
        self._database.close()

    def _repeat(self, work: Callable[[], None], seconds: float, failure: str) -> None:
        """A thread of the background."""
        failing = False
        pause = 0.0
        while not self._stopping.wait(pause):
            pause = seconds
            try:
                work()
                if failing:
                    self._log.info(f"{failure}_recovered")
                failing = False
            except LedgerError as exc:
                if self._stopping.is_set():
                    return
                self.sql_errors += 1
                if not failing:
                    self._log.error(failure, error=str(exc), records=self.lag_records)
                failing = True
                if work == self._move:
                    pause = RETRY_SECONDS

    def _read_keys(self) -> None:
        if self._prepared or (self._database.exists() and self._database.is_current()):
            self._prepared = True
            self._keys.refresh(self._database, self._follow_limits)

    def _move(self) -> None:
        """Move what the journal holds: a little in this process, much in the one that is there for it."""
        if self._journal.waiting and self._loop is not None:
            self._loop.call_soon_threadsafe(self.flush)
        if self.lag_records > MANY_RECORDS:
            began, written = time.time(), self._journal.written
            self._prepare()
            self._moved(began, written, self._mover.move(self._stopping.is_set).torn)
            self._mover_used = began
        elif self.lag_records:
            self.drain(self._stopping.is_set)
        if self._mover.running and time.time() - self._mover_used > MOVER_SECONDS:
            self._mover.close()

    # Blocking work

    def _prepare(self) -> None:
        with self._prepare_lock:
            if not self._prepared:
                self._database.prepare()
                self._prepared = True

    def drain(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Move the journal's records into SQL. Blocks. Raises LedgerError."""
        began, written = time.time(), self._journal.written
        self._prepare()
        torn = drain.drain(self._database, self._folder, stop).torn
        if not stop():
            self._moved(began, written, torn)

    def _moved(self, began: float, written: int, torn: int) -> None:
        """All of the first ``written`` records are in SQL; the round for them began at ``began``."""
        self.torn_records += torn
        if written >= self._drained:  # else another round that began later was done before
            self._drained = written
            self._pending_since = began if self._journal.written + self._journal.waiting > written else None

    def usage(self, by: Sequence[str] = ("client",), since: float | None = None, until: float | None = None) -> Report:
        """What was used from ``since`` to ``until``, journal included, grouped by columns of ``report.GROUPS``.

        Blocks. Raises LedgerError, Refused for an unknown group.
        """
        from lmtower.ledger import report

        grouping = report.checked(by)
        self.drain()
        return report.report(self._database, grouping, since, until)

    def create_key(
        self,
        name: str,
        personas: Iterable[str] | None = None,
        limits: Limits | None = None,
        expires_at: float | None = None,
    ) -> NewKey:
        """Make a key; its secret is in the answer and nowhere else. Blocks. Raises LedgerError."""
        self._prepare()
        made = keys.create(self._database, name, personas, limits, expires_at)
        self._keys.refresh(self._database, self._follow_limits)
        return made

    def first_key(self, name: str) -> str | None:
        """The secret of a new key if there never was one, else None. Blocks. Raises LedgerError."""
        self._prepare()
        return None if keys.exist(self._database) else self.create_key(name).secret

    def list_keys(self) -> tuple[KeyRow, ...]:
        """Every key, oldest first, the revoked ones too. Blocks. Raises LedgerError."""
        self._prepare()
        return keys.listed(self._database)

    def revoke_key(self, id_or_name: str) -> Client:
        """Revoke one key; every tower sees it within a second. Blocks. Raises LedgerError."""
        self._prepare()
        client = keys.revoke(self._database, id_or_name)
        self._keys.refresh(self._database, self._follow_limits)
        return client

    def change_key(self, id_or_name: str, edit: Callable[[Client], Client]) -> Client:
        """Change one key's name, personas, limits or end; towers see it within a second. Blocks. Raises LedgerError."""
        self._prepare()
        client = keys.change(self._database, id_or_name, edit)
        self._keys.refresh(self._database, self._follow_limits)
        return client


def _limits_of(clients: Iterable[Client]) -> dict[str, Limits | None]:
    return {client.id: client.limits for client in clients}


def _spans(limits: Mapping[str, Limits]) -> set[tuple[str, str]]:
    return {(name, span) for name, each in limits.items() for span in kinds_of(each)}


def _spans_of_keys(clients: Iterable[Client]) -> set[tuple[str, str]]:
    return _spans({f"key {client.id}": client.limits for client in clients if client.limits})


def _limits(redis: str | None) -> LocalLimits:
    if redis is None:
        return LocalLimits()
    from lmtower.ledger.shared import SharedLimits

    return SharedLimits(redis)
