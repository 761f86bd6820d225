"""The work of ingestion as rows in SQL: what is to be read, embedded, indexed, and each step taken in one transaction.

See ``schema`` for the stages. Nothing here blocks on anything but the database; ``pipeline`` does the work itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, Row, and_, bindparam, delete, func, insert, select, update

from lmtower.stores.extract import ChunkRow
from lmtower.stores.schema import CHUNKS, ENTRIES, FILES, GRAVES, STORES

Text = tuple[str, str]  # store and hash: the same text in the same store is embedded once


@dataclass(frozen=True, slots=True)
class Job:
    """A file to read."""

    entry: int
    sha256: str
    filename: str
    chunk_tokens: int
    overlap_tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts of one store to embed together."""

    store_id: str
    client: str
    texts: dict[str, str]


@dataclass(frozen=True, slots=True)
class Jobs:
    engine: Engine

    def recover(self) -> list[Row[Any]]:
        """Entries that were being indexed when the process died: their rows may or may not be in LanceDB."""
        query = select(ENTRIES.c.seq, ENTRIES.c.store_id, STORES.c.generation)
        query = query.join(STORES, STORES.c.id == ENTRIES.c.store_id).where(ENTRIES.c.stage == "indexing")
        with self.engine.connect() as connection:
            return list(connection.execute(query).all())  # type: ignore[arg-type]

    def back(self, entries: Sequence[int]) -> None:
        """Their rows were taken out of LanceDB; the vectors are still in ``chunks``."""
        self._set_stage(entries, "embedded")

    def queued(self, busy: Collection[int]) -> Job | None:
        query = select(ENTRIES, FILES.c.sha256, FILES.c.filename).join(FILES, FILES.c.id == ENTRIES.c.file_id)
        query = query.where(ENTRIES.c.stage == "queued").order_by(ENTRIES.c.seq).limit(len(busy) + 1)
        with self.engine.connect() as connection:
            for row in connection.execute(query):
                if row.seq not in busy:
                    return Job(row.seq, row.sha256, row.filename, row.chunk_tokens, row.overlap_tokens)
        return None

    def chunked(self, entry: int, chunks: Sequence[ChunkRow]) -> None:
        """The file was read. If it was removed or cancelled meanwhile, nothing happens."""
        with self.engine.begin() as connection:
            values = {"stage": "chunked", "chunks": len(chunks), "tokens": sum(chunk.tokens for chunk in chunks)}
            where = and_(ENTRIES.c.seq == entry, ENTRIES.c.stage == "queued")
            if connection.execute(update(ENTRIES).where(where).values(values)).rowcount == 0:
                return
            store = connection.scalar(select(ENTRIES.c.store_id).where(ENTRIES.c.seq == entry))
            rows = [
                {name: getattr(chunk, name) for name in ChunkRow.__struct_fields__}
                | {"entry": entry, "store_id": store}
                for chunk in chunks
            ]
            connection.execute(insert(CHUNKS), rows)

    def failed(self, entries: Sequence[int], code: str, message: str) -> None:
        with self.engine.begin() as connection:
            values = {"status": "failed", "stage": "failed", "error_code": code, "error_message": message}
            connection.execute(
                update(ENTRIES).where(ENTRIES.c.seq.in_(entries), ENTRIES.c.status == "in_progress").values(values)
            )
            connection.execute(delete(CHUNKS).where(CHUNKS.c.entry.in_(entries)))

    def texts(self, busy: Collection[Text], limit: int, tokens: int, resting: Collection[str] = ()) -> Batch | None:
        """The next texts without a vector, all of one store, none of them under way, none of a client that rests."""
        columns = (CHUNKS.c.store_id, CHUNKS.c.hash, CHUNKS.c.text, CHUNKS.c.tokens, STORES.c.client)
        query = select(*columns).join(STORES, STORES.c.id == CHUNKS.c.store_id).where(CHUNKS.c.vector.is_(None))
        if resting:
            query = query.where(STORES.c.client.not_in(resting))
        query = query.order_by(CHUNKS.c.entry, CHUNKS.c.number).limit(limit + len(busy))
        batch: Batch | None = None
        budget = tokens
        with self.engine.connect() as connection:
            for row in connection.execute(query):
                if (row.store_id, row.hash) in busy:
                    continue
                batch = batch or Batch(row.store_id, row.client, {})
                budget -= row.tokens
                if row.store_id != batch.store_id or len(batch.texts) >= limit or (batch.texts and budget < 0):
                    break
                batch.texts[row.hash] = row.text
        return batch

    def known(self, store_id: str, hashes: Collection[str]) -> dict[str, bytes]:
        """Vectors of texts that another file of the store has brought, but that are not in LanceDB yet."""
        where = and_(CHUNKS.c.store_id == store_id, CHUNKS.c.hash.in_(hashes), CHUNKS.c.vector.is_not(None))
        with self.engine.connect() as connection:
            return {
                row.hash: row.vector for row in connection.execute(select(CHUNKS.c.hash, CHUNKS.c.vector).where(where))
            }

    def embedded(self, store_id: str, vectors: dict[str, bytes]) -> None:
        """Vectors arrived. Files for which the last one came are ready to be indexed."""
        if not vectors:
            return
        with self.engine.begin() as connection:
            mine = and_(CHUNKS.c.store_id == store_id, CHUNKS.c.hash.in_(vectors))
            entries = connection.execute(select(CHUNKS.c.entry).where(mine).distinct()).scalars().all()
            statement = (
                update(CHUNKS)
                .where(CHUNKS.c.store_id == store_id, CHUNKS.c.hash == bindparam("its_hash"))
                .values(vector=bindparam("its_vector"))
            )
            connection.execute(statement, [{"its_hash": key, "its_vector": value} for key, value in vectors.items()])
            counted = select(CHUNKS.c.entry, func.count(), func.count(CHUNKS.c.vector))
            counted = counted.where(CHUNKS.c.entry.in_(entries)).group_by(CHUNKS.c.entry)
            for entry, total, done in connection.execute(counted).all():
                stage = "embedded" if total == done else "chunked"
                where = and_(ENTRIES.c.seq == entry, ENTRIES.c.stage == "chunked")
                connection.execute(update(ENTRIES).where(where).values(embedded=done, stage=stage))

    def owners(self, store_id: str, hashes: Collection[str]) -> list[int]:
        """Entries that hold one of these texts."""
        where = and_(CHUNKS.c.store_id == store_id, CHUNKS.c.hash.in_(hashes))
        with self.engine.connect() as connection:
            return list(connection.execute(select(CHUNKS.c.entry).where(where).distinct()).scalars())

    def ready(self, rows: int) -> list[Row[Any]]:
        """Entries of one store to index in one commit, at least one, about ``rows`` chunks. They are marked so."""
        query = select(ENTRIES.c.seq, ENTRIES.c.store_id, ENTRIES.c.chunks, STORES.c.generation)
        query = query.join(STORES, STORES.c.id == ENTRIES.c.store_id).where(ENTRIES.c.stage == "embedded")
        with self.engine.connect() as connection:
            waiting = connection.execute(query.order_by(ENTRIES.c.seq).limit(1000)).all()
        taken: list[Row[Any]] = []
        for row in waiting:
            if row.store_id == waiting[0].store_id and (not taken or sum(one.chunks for one in taken) < rows):
                taken.append(row)  # type: ignore[arg-type]
        self._set_stage([row.seq for row in taken], "indexing", only="embedded")
        return taken

    def waiting(self) -> int:
        """Chunks that are embedded, but not indexed."""
        with self.engine.connect() as connection:
            query = select(func.coalesce(func.sum(ENTRIES.c.chunks), 0)).where(ENTRIES.c.stage == "embedded")
            return int(connection.execute(query).scalar_one())

    def chunks(self, entries: Sequence[int]) -> Sequence[Row[Any]]:
        query = select(CHUNKS).where(CHUNKS.c.entry.in_(entries)).order_by(CHUNKS.c.entry, CHUNKS.c.number)
        with self.engine.connect() as connection:
            rows: Sequence[Row[Any]] = connection.execute(query).all()
            return rows

    def indexed(self, sizes: dict[int, int]) -> None:
        """Rows are in LanceDB: the files are done. ``sizes`` is the bytes that each uses there."""
        with self.engine.begin() as connection:
            for entry, size in sizes.items():
                where = and_(ENTRIES.c.seq == entry, ENTRIES.c.stage == "indexing")
                values = {"status": "completed", "stage": "done", "usage_bytes": size}
                if connection.execute(update(ENTRIES).where(where).values(values)).rowcount:
                    connection.execute(delete(CHUNKS).where(CHUNKS.c.entry == entry))

    def graves(self) -> Sequence[Row[Any]]:
        with self.engine.connect() as connection:
            rows: Sequence[Row[Any]] = connection.execute(select(GRAVES).order_by(GRAVES.c.seq).limit(1000)).all()
            return rows

    def buried(self, seqs: Sequence[int]) -> None:
        if not seqs:
            return
        with self.engine.begin() as connection:
            connection.execute(delete(GRAVES).where(GRAVES.c.seq.in_(seqs)))

    def store(self, store_id: str) -> Row[Any] | None:
        with self.engine.connect() as connection:
            row: Row[Any] | None = connection.execute(select(STORES).where(STORES.c.id == store_id)).one_or_none()
            return row

    def sign(self, store_id: str, model: str, probe: bytes) -> None:
        """The first vectors of a store decide which model it belongs to."""
        with self.engine.begin() as connection:
            where = and_(STORES.c.id == store_id, STORES.c.probe.is_(None))
            connection.execute(update(STORES).where(where).values(model=model, probe=probe))

    def depth(self) -> dict[str, int]:
        """Entries by stage, for metrics."""
        with self.engine.connect() as connection:
            query = select(ENTRIES.c.stage, func.count()).group_by(ENTRIES.c.stage)
            return {row[0]: row[1] for row in connection.execute(query).all()}

    def _set_stage(self, entries: Sequence[int], stage: str, only: str | None = None) -> None:
        if entries:
            query = update(ENTRIES).where(ENTRIES.c.seq.in_(entries))
            if only:
                query = query.where(ENTRIES.c.stage == only)
            with self.engine.begin() as connection:
                connection.execute(query.values(stage=stage))
