"""Files, stores and who may see them, in SQL. Every query is asked on behalf of a caller."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Table,
    and_,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from lmtower.stores.access import OPERATOR, Caller, Page, PageRequest, Record, expires_at, may_read, read_page
from lmtower.stores.faults import ApiError, missing
from lmtower.stores.schema import BATCHES, CHUNKS, ENTRIES, FILES, GRAVES, STORES
from lmtower.stores.vectors import table_name

TOUCH_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Files and stores. ``now`` is the clock, in seconds."""

    engine: Engine
    now: Callable[[], float] = field(default=time.time)

    # -- files

    def add_file(self, caller: Caller, filename: str, purpose: str, size: int, sha256: str, ttl: int | None) -> Record:
        created = int(self.now())
        values = {
            "id": _new_id("file-"),
            "client": caller.client,
            "filename": filename,
            "purpose": purpose,
            "bytes": size,
            "sha256": sha256,
            "created_at": created,
            "expires_at": created + ttl if ttl else None,
        }
        with self.engine.begin() as connection:
            connection.execute(insert(FILES).values(values))
            return self._file(connection, caller, str(values["id"]))

    def file(self, caller: Caller, file_id: str) -> Record:
        with self.engine.connect() as connection:
            return self._file(connection, caller, file_id)

    def files(self, caller: Caller, page: PageRequest, purpose: str | None = None) -> Page:
        query = select(FILES).where(self._own(FILES, caller))
        if purpose:
            query = query.where(FILES.c.purpose == purpose)
        return read_page(self.engine, query, FILES, FILES.c.id, page)

    def delete_file(self, caller: Caller, file_id: str) -> str:
        """Takes it out of every store, too. Returns the hash of its content, which other files may have."""
        with self.engine.begin() as connection:
            file = self._file(connection, caller, file_id)
            rows = connection.execute(select(ENTRIES).where(ENTRIES.c.file_id == file_id)).all()
            for row in rows:
                self._remove(connection, row)
            connection.execute(delete(FILES).where(FILES.c.id == file_id))
            return str(file.sha256)

    def needs(self, sha256: str) -> bool:
        """Whether a file has this content."""
        with self.engine.connect() as connection:
            return bool(connection.scalar(select(func.count()).where(FILES.c.sha256 == sha256)))

    def _file(self, connection: Connection, caller: Caller, file_id: str) -> Record:
        row = connection.execute(select(FILES).where(FILES.c.id == file_id, self._own(FILES, caller))).one_or_none()
        if row is None or (row.expires_at is not None and row.expires_at <= self.now()):
            raise missing("file", file_id)
        return row

    # -- stores

    def create_store(self, caller: Caller, values: dict[str, Any]) -> Record:
        created = int(self.now())
        values = values | {
            "id": _new_id("vs_"),
            "client": caller.client,
            "created_at": created,
            "last_active_at": created,
        }
        with self.engine.begin() as connection:
            connection.execute(insert(STORES).values(values))
            return self._store(connection, caller, str(values["id"]))

    def store(self, caller: Caller, store_id: str, *, write: bool = False) -> Record:
        with self.engine.connect() as connection:
            return self._store(connection, caller, store_id, write=write)

    def stores(self, caller: Caller, page: PageRequest) -> Page:
        """A client's own stores, then those shared with it; the operator's list holds all."""
        return read_page(self.engine, select(STORES).where(self._visible(caller)), STORES, STORES.c.id, page)

    def update_store(self, caller: Caller, store_id: str, values: dict[str, Any]) -> Record:
        with self.engine.begin() as connection:
            self._store(connection, caller, store_id, write=True)
            values = values | {"last_active_at": int(self.now())}
            connection.execute(update(STORES).where(STORES.c.id == store_id).values(values))
            return self._store(connection, caller, store_id)

    def delete_store(self, caller: Caller, store_id: str) -> None:
        with self.engine.begin() as connection:
            self._clear(connection, self._store(connection, caller, store_id, write=True))
            connection.execute(delete(BATCHES).where(BATCHES.c.store_id == store_id))
            connection.execute(delete(STORES).where(STORES.c.id == store_id))

    def rebuild(self, caller: Caller, store_id: str) -> Record:
        """Everything that was read once is read and embedded again, into a new table; the old one goes."""
        with self.engine.begin() as connection:
            row = self._store(connection, caller, store_id, write=True)
            connection.execute(insert(GRAVES).values(vectors=table_name(row.id, row.generation)))
            connection.execute(delete(CHUNKS).where(CHUNKS.c.store_id == store_id))
            again = ENTRIES.c.status.in_(("completed", "in_progress"))
            fresh = {"status": "in_progress", "stage": "queued", "embedded": 0, "chunks": 0, "tokens": 0}
            connection.execute(update(ENTRIES).where(ENTRIES.c.store_id == store_id, again).values(fresh))
            new = {"generation": row.generation + 1, "model": None, "probe": None}
            connection.execute(update(STORES).where(STORES.c.id == store_id).values(new))
            return self._store(connection, caller, store_id)

    def touch(self, stores: Sequence[Record]) -> None:
        """They were used. Once a minute is enough for what expires in days: a search should not wait for a writer."""
        now = int(self.now())
        idle = [store.id for store in stores if now - store.last_active_at >= TOUCH_SECONDS]
        if idle:
            with self.engine.begin() as connection:
                connection.execute(update(STORES).where(STORES.c.id.in_(idle)).values(last_active_at=now))

    def named_stores(self, names: Sequence[str]) -> list[Record]:
        """Stores that a persona is given in the tower file, by name or id: the operator's first, else the only one."""
        with self.engine.connect() as connection:
            found = []
            for name in names:
                query = select(STORES).where(or_(STORES.c.name == name, STORES.c.id == name)).order_by(STORES.c.seq)
                rows = connection.execute(query).all()
                mine = [row for row in rows if row.client == OPERATOR] or rows
                if not mine:
                    raise missing("vector store", name)
                found.append(mine[0])
            return found

    def expired(self, row: Record) -> bool:
        at = expires_at(row)
        return at is not None and at <= self.now()

    def _store(self, connection: Connection, caller: Caller, store_id: str, *, write: bool = False) -> Record:
        row = connection.execute(select(STORES).where(STORES.c.id == store_id)).one_or_none()
        if row is None or not may_read(caller, row):
            raise missing("vector store", store_id)
        if write and not caller.operator and row.client != caller.client:
            raise ApiError(
                403, f"Vector store {store_id!r} is shared with you to read, not to change.", code="read_only"
            )
        return row

    # -- entries: files in stores

    def attach(self, caller: Caller, store_id: str, items: Sequence[dict[str, Any]], batch: bool) -> Record | None:
        """Put files into a store as work to be done. Returns the batch, when one is wanted.

        A file that is there already gets its new attributes, and a new try when it had failed.
        """
        with self.engine.begin() as connection:
            store = self._store(connection, caller, store_id, write=True)
            if self.expired(store):
                raise ApiError(400, f"Vector store {store_id!r} has expired.", code="expired")
            created = int(self.now())
            batch_id = _new_id("vsfb_") if batch else None
            files = self._own_files(connection, caller, [item["file_id"] for item in items])
            common = {"store_id": store_id, "batch_id": batch_id, "created_at": created}
            common |= {"status": "in_progress", "stage": "queued"}
            wanted = {item["file_id"]: item | common for item in items}
            self._attach(connection, store_id, wanted, files)
            connection.execute(update(STORES).where(STORES.c.id == store_id).values(last_active_at=created))
            if batch_id is None:
                return None
            connection.execute(insert(BATCHES).values(id=batch_id, store_id=store_id, created_at=created))
            return connection.execute(select(BATCHES).where(BATCHES.c.id == batch_id)).one()

    def _attach(
        self, connection: Connection, store_id: str, wanted: dict[str, dict[str, Any]], files: set[str]
    ) -> None:
        for file_id in wanted:
            if file_id not in files:
                raise missing("file", file_id)
        where = and_(ENTRIES.c.store_id == store_id, ENTRIES.c.file_id.in_(files))
        for old in connection.execute(select(ENTRIES).where(where)).all():
            if old.status in ("failed", "cancelled"):
                self._remove(connection, old)
                continue
            values = wanted.pop(old.file_id)
            new = {"attributes": values["attributes"], "batch_id": values["batch_id"] or old.batch_id}
            connection.execute(update(ENTRIES).where(ENTRIES.c.seq == old.seq).values(new))
        if wanted:
            connection.execute(insert(ENTRIES), list(wanted.values()))

    def _own_files(self, connection: Connection, caller: Caller, file_ids: Sequence[str]) -> set[str]:
        alive = or_(FILES.c.expires_at.is_(None), FILES.c.expires_at > self.now())
        query = select(FILES.c.id).where(FILES.c.id.in_(file_ids), self._own(FILES, caller), alive)
        return set(connection.execute(query).scalars())

    def entry(self, caller: Caller, store_id: str, file_id: str) -> Record:
        with self.engine.connect() as connection:
            self._store(connection, caller, store_id)
            return self._entry(connection, store_id, file_id)

    def entries(
        self, caller: Caller, store_id: str, page: PageRequest, status: str | None = None, batch_id: str | None = None
    ) -> Page:
        with self.engine.connect() as connection:
            self._store(connection, caller, store_id)
        query = select(ENTRIES).where(ENTRIES.c.store_id == store_id)
        if status:
            query = query.where(ENTRIES.c.status == status)
        if batch_id:
            query = query.where(ENTRIES.c.batch_id == batch_id)
        return read_page(self.engine, query, ENTRIES, ENTRIES.c.file_id, page)

    def update_entry(self, caller: Caller, store_id: str, file_id: str, attributes: dict[str, Any]) -> Record:
        with self.engine.begin() as connection:
            self._store(connection, caller, store_id, write=True)
            row = self._entry(connection, store_id, file_id)
            connection.execute(update(ENTRIES).where(ENTRIES.c.seq == row.seq).values(attributes=attributes))
            return self._entry(connection, store_id, file_id)

    def detach(self, caller: Caller, store_id: str, file_id: str) -> None:
        with self.engine.begin() as connection:
            self._store(connection, caller, store_id, write=True)
            self._remove(connection, self._entry(connection, store_id, file_id))

    def counts(self, where: ColumnElement[bool]) -> tuple[dict[str, int], int]:
        """Entries by status, and the bytes that they use."""
        query = select(ENTRIES.c.status, func.count(), func.sum(ENTRIES.c.usage_bytes)).where(where)
        with self.engine.connect() as connection:
            rows = connection.execute(query.group_by(ENTRIES.c.status)).all()
        return {row[0]: row[1] for row in rows}, sum(int(row[2] or 0) for row in rows)

    def progress(self, store_id: str) -> Record:
        """What the CLI's progress bar shows: files, chunks and tokens, done and known so far."""
        settled = case((ENTRIES.c.status == "in_progress", 0), else_=1)
        columns = (
            func.count().label("files"),
            func.sum(settled).label("files_done"),
            func.sum(ENTRIES.c.chunks).label("chunks"),
            func.sum(ENTRIES.c.embedded).label("chunks_done"),
            func.sum(ENTRIES.c.tokens).label("tokens"),
        )
        with self.engine.connect() as connection:
            return connection.execute(select(*columns).where(ENTRIES.c.store_id == store_id)).one()

    def findable(self, store_id: str, entries: Collection[int] | None = None) -> dict[int, Record]:
        """Files that may be shown as hits (all, or those of ``entries``), by number: id, name and attributes."""
        query = select(ENTRIES.c.seq, ENTRIES.c.file_id, FILES.c.filename, ENTRIES.c.attributes)
        query = query.join(FILES, FILES.c.id == ENTRIES.c.file_id)
        query = query.where(ENTRIES.c.store_id == store_id, ENTRIES.c.status == "completed")
        if entries is not None:
            query = query.where(ENTRIES.c.seq.in_(entries))
        with self.engine.connect() as connection:
            return {row.seq: row for row in connection.execute(query)}  # type: ignore[misc]

    def _entry(self, connection: Connection, store_id: str, file_id: str) -> Record:
        where = and_(ENTRIES.c.store_id == store_id, ENTRIES.c.file_id == file_id)
        row = connection.execute(select(ENTRIES).where(where)).one_or_none()
        if row is None:
            raise missing("file", file_id)
        return row

    def _remove(self, connection: Connection, entry: Record) -> None:
        generation = connection.execute(select(STORES.c.generation).where(STORES.c.id == entry.store_id)).scalar_one()
        connection.execute(insert(GRAVES).values(vectors=table_name(entry.store_id, generation), entry=entry.seq))
        connection.execute(delete(CHUNKS).where(CHUNKS.c.entry == entry.seq))
        connection.execute(delete(ENTRIES).where(ENTRIES.c.seq == entry.seq))

    def _clear(self, connection: Connection, store: Record) -> None:
        connection.execute(insert(GRAVES).values(vectors=table_name(store.id, store.generation)))
        connection.execute(delete(CHUNKS).where(CHUNKS.c.store_id == store.id))
        connection.execute(delete(ENTRIES).where(ENTRIES.c.store_id == store.id))

    # -- batches

    def batch(self, caller: Caller, store_id: str, batch_id: str) -> Record:
        with self.engine.connect() as connection:
            self._store(connection, caller, store_id)
            where = and_(BATCHES.c.id == batch_id, BATCHES.c.store_id == store_id)
            row = connection.execute(select(BATCHES).where(where)).one_or_none()
        if row is None:
            raise missing("vector store file batch", batch_id)
        return row

    def cancel_batch(self, caller: Caller, store_id: str, batch_id: str) -> Record:
        """What is not done yet will not be; what is being written to the vector table at this moment still is."""
        self.store(caller, store_id, write=True)
        self.batch(caller, store_id, batch_id)
        waiting = and_(ENTRIES.c.batch_id == batch_id, ENTRIES.c.status == "in_progress", ENTRIES.c.stage != "indexing")
        with self.engine.begin() as connection:
            entries = select(ENTRIES.c.seq).where(waiting)
            connection.execute(delete(CHUNKS).where(CHUNKS.c.entry.in_(entries)))
            connection.execute(update(ENTRIES).where(waiting).values(status="cancelled", stage="cancelled"))
            connection.execute(update(BATCHES).where(BATCHES.c.id == batch_id).values(cancelled=True))
        return self.batch(caller, store_id, batch_id)

    # -- what expired

    def sweep(self) -> list[str]:
        """Delete expired files and the contents of expired stores. Returns hashes of their contents."""
        now = int(self.now())
        with self.engine.begin() as connection:
            dated = select(STORES).where(STORES.c.expires_days.is_not(None))
            for store in connection.execute(dated).all():
                some = connection.scalar(select(func.count()).where(ENTRIES.c.store_id == store.id))
                if some and self.expired(store):
                    self._clear(connection, store)
            files = connection.execute(select(FILES).where(FILES.c.expires_at <= now)).all()
        operator = Caller(OPERATOR)
        return [self._delete_expired(operator, row) for row in files]

    def _delete_expired(self, operator: Caller, file: Record) -> str:
        with self.engine.begin() as connection:
            connection.execute(update(FILES).where(FILES.c.id == file.id).values(expires_at=None))
        return self.delete_file(operator, file.id)

    # -- pages and access

    def _own(self, table: Table, caller: Caller) -> ColumnElement[bool]:
        everything: ColumnElement[bool] = table.c.seq > 0
        return everything if caller.operator else table.c.client == caller.client

    def _visible(self, caller: Caller) -> ColumnElement[bool]:
        if caller.operator:
            return self._own(STORES, caller)
        with self.engine.connect() as connection:
            shared = connection.execute(select(STORES).where(STORES.c.client != caller.client)).all()
        readable = [row.seq for row in shared if may_read(caller, row)]
        return or_(STORES.c.client == caller.client, STORES.c.seq.in_(readable))


def _new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(16)
