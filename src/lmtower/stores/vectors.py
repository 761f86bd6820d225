"""Chunks in LanceDB: one table per store and generation, searched by vector and by words.

Theory of operation. Below ``EXACT_ROWS`` a search compares the query with every vector. Above, an IVF index with
RaBitQ codes (four bits a dimension) names candidates, which are put in order by their full vectors: so the recall is
nearly that of an exact search, and the index an eighth of the data. Rows written since the last ``tend`` are always
compared exactly: a new chunk is found at once. Words are BM25 over Lance's inverted index. Rows are deleted logically;
``tend`` rewrites files and takes new rows into the indices, in the background, while searches go on in the snapshot of
before. What it replaced stays on disk for ``KEPT``, for the searches of other towers, and goes with the next ``tend``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import lancedb
import msgspec
import numpy as np
import pyarrow as pa
from lancedb.index import FTS, BTree, IvfRq
from lancedb.table import AsyncTable, Table

from lmtower.stores.snapshot import PARTITION_ROWS, Floats, Place, Snapshot, among, matrix, wait

EXACT_ROWS = 20_000
CODE_BITS = 4
TRAINING_ROUNDS = 10
TRAINING_SAMPLE = 64
SAMPLE_ROWS = 256
SAMPLE_FROM_ROWS = 64
KEPT = timedelta(minutes=2)
SHARED_SECONDS = 5.0
COLUMNS = ("entry", "hash", "place", "text", "vector")


@dataclass(frozen=True, slots=True)
class Row:
    """One chunk on its way into a table."""

    entry: int
    number: int
    hash: str
    text: str
    lead: int
    page: int | None
    heading: str
    start: int
    end: int
    vector: bytes


def table_name(store_id: str, generation: int) -> str:
    return f"{store_id}_{generation}"


class Seen:
    """Which texts a table may have, in 8 bytes a chunk: most of an upload is new and needs no look at the disk."""

    def __init__(self, hashes: Iterable[str]) -> None:
        self._old = np.sort(np.fromiter(map(_prefix, hashes), dtype=np.uint64))
        self._new: set[int] = set()

    def add(self, hashes: Iterable[str]) -> None:
        self._new.update(map(_prefix, hashes))
        if len(self._new) > 65_536:
            self._old = np.union1d(self._old, np.fromiter(self._new, dtype=np.uint64))
            self._new = set()

    def __contains__(self, digest: str) -> bool:
        prefix = _prefix(digest)
        place = int(np.searchsorted(self._old, np.uint64(prefix)))
        return prefix in self._new or (place < len(self._old) and int(self._old[place]) == prefix)


def _prefix(digest: str) -> int:
    return int(digest[:16], 16)


class Vectors:
    """All tables at one place. Safe to use from several threads; one writer at a time per table."""

    def __init__(self, uri: str) -> None:
        self._database = lancedb.connect(uri)
        self._searched = wait(lancedb.connect_async(uri))
        # another tower may write to a bucket: look for its versions now and then
        self._shared = "://" in uri
        self._tables: dict[str, Table] = {}
        self._snapshots: dict[str, tuple[float, Snapshot]] = {}
        self._seen: dict[str, Seen] = {}
        self._samples: dict[str, tuple[int, Floats]] = {}
        self._legible: set[str] = set()
        self._lock = threading.Lock()

    def add(self, name: str, rows: Sequence[Row]) -> None:
        """One commit: all of them or none."""
        data = _arrow(rows)
        table = self._open(name)
        if table is None:
            table = self._database.create_table(name, data)
            table.create_index("text", config=FTS(with_position=False))
        else:
            table.add(data)
        with self._lock:
            self._tables[name] = table
            if name in self._seen:
                self._seen[name].add(row.hash for row in rows)
        self._publish(name)

    def delete(self, name: str, entries: Iterable[int]) -> int:
        """How many rows went."""
        table = self._open(name)
        if table is None:
            return 0
        before = table.count_rows()
        table.delete(among(entries))
        self._publish(name)
        return int(before - table.count_rows())

    def drop(self, name: str) -> None:
        with self._lock:
            self._tables.pop(name, None)
            self._snapshots.pop(name, None)
            self._samples.pop(name, None)
            self._seen.pop(name, None)
            self._legible.discard(name)
            try:
                self._database.drop_table(name)
            except (FileNotFoundError, ValueError):
                return

    def legible(self, name: str) -> bool:
        """Whether a table has the columns of this version of lmtower. One that does not exist yet will have."""
        if name in self._legible:
            return True
        table = self._open(name)
        if table is not None and tuple(table.schema.names) != COLUMNS:
            return False
        self._legible.add(name)
        return True

    def count(self, name: str) -> int:
        table = self._open(name)
        return 0 if table is None else int(table.count_rows())

    def known(self, name: str, hashes: Sequence[str]) -> dict[str, bytes]:
        """Vectors of texts that this table has already, by the hash of the text."""
        table = self._open(name)
        if table is None:
            return {}
        hashes = [digest for digest in hashes if digest in self._seen_in(name, table)]
        if not hashes:
            return {}
        where = "hash IN ({})".format(", ".join(f"'{value}'" for value in hashes))
        found = table.search().where(where).select(["hash", "vector"]).limit(None).to_arrow()
        return dict(zip(found["hash"].to_pylist(), map(bytes, matrix(found)), strict=True))

    def _seen_in(self, name: str, table: Table) -> Seen:
        with self._lock:
            if name not in self._seen:
                self._seen[name] = Seen(table.search().select(["hash"]).limit(None).to_arrow()["hash"].to_pylist())
            return self._seen[name]

    def texts(self, name: str, entry: int) -> list[str]:
        """The chunks of one file in their order, without their heading paths."""
        table = self._open(name)
        if table is None:
            return []
        found = table.search().where(f"entry = {entry}").select(["place", "text"]).limit(None).to_arrow()
        places = [msgspec.json.decode(text, type=Place) for text in found["place"].to_pylist()]
        rows = sorted(zip(places, found["text"].to_pylist(), strict=True), key=lambda row: row[0].number)
        return [text[place.lead :] for place, text in rows]

    def sample(self, name: str) -> Floats | None:
        """Unit vectors of some chunks, the same ones while the table keeps about its size. None for a small table."""
        snapshot = self.snapshot(name)
        if snapshot is None or snapshot.rows < SAMPLE_FROM_ROWS:
            return None
        rows = snapshot.rows
        with self._lock:
            kept = self._samples.get(name)
        if kept is not None and rows / 2 < kept[0] < rows * 2:
            return kept[1]
        offsets = np.random.default_rng(rows).choice(rows, min(rows, SAMPLE_ROWS), replace=False)
        vectors = snapshot.vectors(offsets.tolist()).copy()
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        with self._lock:
            self._samples[name] = (rows, vectors)
        return vectors

    def tend(self, name: str) -> bool:
        """Take new rows into the indices, rewrite small files, build the vector index when the table is big enough.

        Returns whether anything was rewritten or removed: then another round will remove what this one replaced.
        """
        table = self._open(name)
        if table is None:
            return False
        rows = table.count_rows()
        have = {index.name: index for index in table.list_indices()}
        if rows >= EXACT_ROWS:
            if "entry_idx" not in have:
                table.create_index("entry", config=BTree())
                table.create_index("hash", config=BTree())
            stats = table.index_stats("vector_idx") if "vector_idx" in have else None
            # partitions are learnt from the rows of the time; a table four times as large has outgrown them
            if stats is None or rows > 4 * _rows_at_training(stats):
                config = IvfRq(
                    distance_type="cosine",
                    num_bits=CODE_BITS,
                    max_iterations=TRAINING_ROUNDS,
                    sample_rate=TRAINING_SAMPLE,
                    target_partition_size=PARTITION_ROWS,
                )
                table.create_index("vector", config=config, replace=True)
        version = table.version
        table.optimize(cleanup_older_than=KEPT)
        self._publish(name, warm=True)
        return bool(table.version != version)

    def snapshot(self, name: str) -> Snapshot | None:
        """The newest version of a table, to search in; None when nothing was ever written."""
        with self._lock:
            known = self._snapshots.get(name)
        if known is not None and not (self._shared and time.monotonic() - known[0] > SHARED_SECONDS):
            return known[1]
        return self._publish(name, warm=known is None)

    def _publish(self, name: str, *, warm: bool = False) -> Snapshot | None:
        """What was written until now is what searches see from now on. ``warm``: after ``tend``, or at first."""
        snapshot = wait(self._newest(name, warm=warm))
        if snapshot is None:
            return None
        with self._lock:
            self._snapshots[name] = (time.monotonic(), snapshot)
        return snapshot

    async def _newest(self, name: str, *, warm: bool) -> Snapshot | None:
        try:
            table = await self._searched.open_table(name)
        except (FileNotFoundError, ValueError):
            return None
        whole = await _warm(table) if warm else frozenset()
        return Snapshot(table, await table.count_rows(), "vector_idx" in whole, "text_idx" in whole)

    def _open(self, name: str) -> Table | None:
        with self._lock:
            if name not in self._tables:
                try:
                    self._tables[name] = self._database.open_table(name)
                except (FileNotFoundError, ValueError):
                    return None
            return self._tables[name]


async def _warm(table: AsyncTable) -> frozenset[str]:
    """Read the codes of all partitions (an eighth of the vectors) and the lists of words, not one by one in searches.

    Returns the indices that hold every row.
    """
    names = [index.name for index in await table.list_indices()]
    for name in {"vector_idx", "text_idx"} & set(names):
        await table.prewarm_index(name)
    stats = {name: await table.index_stats(name) for name in names}
    return frozenset(name for name, found in stats.items() if found is not None and not found.num_unindexed_rows)


def _rows_at_training(stats: object) -> int:
    """Rows are taken into an index by ``optimize`` too; each of those adds a delta that retraining would merge."""
    indexed = int(getattr(stats, "num_indexed_rows", 0))
    deltas = int(getattr(stats, "num_indices", 1) or 1)
    return max(1, indexed // deltas)


def _arrow(rows: Sequence[Row]) -> pa.Table:
    values = np.frombuffer(b"".join(row.vector for row in rows), dtype="<f4")
    dimensions = len(values) // len(rows)
    places = [Place(row.entry, row.number, row.lead, row.page, row.heading, row.start, row.end) for row in rows]
    columns = (
        pa.array([row.entry for row in rows], pa.int64()),
        pa.array([row.hash for row in rows], pa.string()),
        pa.array([msgspec.json.encode(place).decode() for place in places], pa.string()),
        pa.array([row.text for row in rows], pa.string()),
        pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float32()), dimensions),
    )
    return pa.table(dict(zip(COLUMNS, columns, strict=True)))
