"""Chunks in LanceDB: one table per store and generation, searched by vector and by words.

Theory of operation. Below ``EXACT_ROWS`` a search compares the query with every vector. Above, an IVF index with
RaBitQ codes (one bit a dimension) names candidates, and ``refine`` ranks a few times as many as wanted by their full
vectors: so the recall is that of an exact search, nearly, and the index a thirtieth of the data. Rows written since the
last ``tend`` are always compared exactly: a new chunk is found at once. Words are BM25 over Lance's inverted index.
Rows are deleted logically; ``tend`` rewrites files and takes new rows into the indices, in the background.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import lancedb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.index import FTS, BTree, IvfRq
from lancedb.query import LanceVectorQueryBuilder
from lancedb.table import LanceTable

EXACT_ROWS = 20_000
# recall@10 at 1,000,000 × 768: 0.87 with 24 probes, 0.93 with 60, 0.96 with 100, 0.97 with 160; time hardly differs
PROBES = 24
PROBED_SHARE = 8
REFINED_ROWS = 100
TRAINING_ROUNDS = 20
TRAINING_SAMPLE = 128
SAMPLE_ROWS = 256
SAMPLE_FROM_ROWS = 64
_COLUMNS = ("entry", "number", "text", "lead", "page", "heading", "start", "end")
Floats = npt.NDArray[np.float32]


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


@dataclass(frozen=True, slots=True)
class Found:
    """One chunk that a search brought up. ``similarity`` is the cosine, ``words`` the BM25 score or 0."""

    entry: int
    number: int
    text: str
    page: int | None
    heading: str
    start: int
    end: int
    similarity: float
    words: float

    @property
    def key(self) -> tuple[int, int]:
        return self.entry, self.number


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
        # another tower may write to a bucket: look for its versions now and then
        interval = timedelta(seconds=5) if "://" in uri else None
        self._database = lancedb.connect(uri, read_consistency_interval=interval)
        self._tables: dict[str, lancedb.table.Table] = {}
        self._rows: dict[str, int] = {}
        self._seen: dict[str, Seen] = {}
        self._samples: dict[str, tuple[int, Floats]] = {}
        self._lock = threading.Lock()

    def add(self, name: str, rows: Sequence[Row]) -> None:
        """One commit: all of them or none."""
        data = _arrow(rows)
        table = self._open(name)
        if table is None:
            with self._lock:
                self._tables[name] = self._database.create_table(name, data)
                self._rows[name] = 0
            self._tables[name].create_index("text", config=FTS(with_position=False))
        else:
            table.add(data)
        with self._lock:
            self._rows[name] += len(rows)
            if name in self._seen:
                self._seen[name].add(row.hash for row in rows)

    def delete(self, name: str, entries: Iterable[int]) -> None:
        table = self._open(name)
        if table is not None:
            table.delete(_among(entries))

    def drop(self, name: str) -> None:
        with self._lock:
            self._tables.pop(name, None)
            self._samples.pop(name, None)
            self._seen.pop(name, None)
            try:
                self._database.drop_table(name)
            except (FileNotFoundError, ValueError):
                return

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
        return dict(zip(found["hash"].to_pylist(), map(bytes, _matrix(found)), strict=True))

    def _seen_in(self, name: str, table: lancedb.table.Table) -> Seen:
        with self._lock:
            if name not in self._seen:
                self._seen[name] = Seen(table.search().select(["hash"]).limit(None).to_arrow()["hash"].to_pylist())
            return self._seen[name]

    def texts(self, name: str, entry: int) -> list[str]:
        """The chunks of one file in their order, without their heading paths."""
        table = self._open(name)
        if table is None:
            return []
        found = table.search().where(f"entry = {entry}").select(["number", "text", "lead"]).limit(None).to_arrow()
        rows = sorted(found.to_pylist(), key=lambda row: row["number"])
        return [row["text"][row["lead"] :] for row in rows]

    def sample(self, name: str) -> Floats | None:
        """Unit vectors of some chunks, the same ones while the table keeps about its size. None for a small table."""
        table = self._open(name)
        rows = 0 if table is None else int(table.count_rows())
        if table is None or rows < SAMPLE_FROM_ROWS:
            return None
        with self._lock:
            kept = self._samples.get(name)
        if kept is not None and rows / 2 < kept[0] < rows * 2:
            return kept[1]
        offsets = np.random.default_rng(rows).choice(rows, min(rows, SAMPLE_ROWS), replace=False)
        vectors = _matrix(table.take_offsets(sorted(offsets.tolist())).select(["vector"]).to_arrow()).copy()
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        with self._lock:
            self._samples[name] = (rows, vectors)
        return vectors

    def by_vector(self, name: str, query: Floats, limit: int, entries: Sequence[int] | None = None) -> list[Found]:
        """Nearest first. ``entries`` restricts the search to these files before it starts."""
        table = self._open(name)
        if table is None:
            return []
        search = table.search(query, query_type="vector", vector_column_name="vector")
        assert isinstance(search, LanceVectorQueryBuilder)
        search = (
            search.distance_type("cosine")
            .nprobes(self._probes(name))
            .refine_factor(max(2, REFINED_ROWS // limit))
            .limit(limit)
            .select([*_COLUMNS, "_distance"])
        )
        if entries is not None:
            search = search.where(_among(entries), prefilter=True)
        return _found(search.to_arrow(), query)

    def by_words(
        self, name: str, words: str, query: Floats, limit: int, entries: Sequence[int] | None = None
    ) -> list[Found]:
        """Best BM25 score first; no chunk without one of the words."""
        table = self._open(name)
        if table is None or not words.strip():
            return []
        search = (
            table.search(words, query_type="fts", fts_columns="text")
            .limit(limit)
            .select([*_COLUMNS, "vector", "_score"])
        )
        if entries is not None:
            search = search.where(_among(entries), prefilter=True)
        return _found(search.to_arrow(), query)

    def tend(self, name: str) -> None:
        """Take new rows into the indices, rewrite small files, build the vector index when the table is big enough."""
        table = self._open(name)
        if table is None:
            return
        rows = table.count_rows()
        have = {index.name: index for index in table.list_indices()}
        if rows >= EXACT_ROWS:
            partitions = max(1, round(rows**0.5))
            if "entry_idx" not in have:
                table.create_index("entry", config=BTree())
                table.create_index("hash", config=BTree())
            stats = table.index_stats("vector_idx") if "vector_idx" in have else None
            # partitions are learnt from the rows of the time; a table four times as large has outgrown them
            if stats is None or rows > 4 * _rows_at_training(stats):
                config = IvfRq(
                    distance_type="cosine",
                    num_partitions=partitions,
                    max_iterations=TRAINING_ROUNDS,
                    sample_rate=TRAINING_SAMPLE,
                )
                table.create_index("vector", config=config, replace=True)
        table.optimize(cleanup_older_than=timedelta(minutes=10))
        _warm(table)

    def _open(self, name: str) -> lancedb.table.Table | None:
        with self._lock:
            if name not in self._tables:
                try:
                    table = self._tables[name] = self._database.open_table(name)
                except (FileNotFoundError, ValueError):
                    return None
                self._rows[name] = table.count_rows()
                _warm(table)
            return self._tables[name]

    def _probes(self, name: str) -> int:
        """Partitions to look into. There are as many as the root of the rows; an eighth of them is enough."""
        partitions: float = self._rows[name] ** 0.5
        return max(PROBES, round(partitions) // PROBED_SHARE)


def _warm(table: lancedb.table.Table) -> None:
    """Read the codes of all partitions now (a hundredth of the vectors), not one by one at the first searches."""
    if isinstance(table, LanceTable) and any(index.name == "vector_idx" for index in table.list_indices()):
        table.prewarm_index("vector_idx")


def _rows_at_training(stats: object) -> int:
    """Rows are taken into an index by ``optimize`` too; each of those adds a delta that retraining would merge."""
    indexed = int(getattr(stats, "num_indexed_rows", 0))
    deltas = int(getattr(stats, "num_indices", 1) or 1)
    return max(1, indexed // deltas)


def _arrow(rows: Sequence[Row]) -> pa.Table:
    matrix = np.frombuffer(b"".join(row.vector for row in rows), dtype="<f4")
    dimensions = len(matrix) // len(rows)
    return pa.table(
        {
            "entry": pa.array([row.entry for row in rows], pa.int64()),
            "number": pa.array([row.number for row in rows], pa.int32()),
            "hash": pa.array([row.hash for row in rows], pa.string()),
            "text": pa.array([row.text for row in rows], pa.string()),
            "lead": pa.array([row.lead for row in rows], pa.int32()),
            "page": pa.array([row.page for row in rows], pa.int32()),
            "heading": pa.array([row.heading for row in rows], pa.string()),
            "start": pa.array([row.start for row in rows], pa.int64()),
            "end": pa.array([row.end for row in rows], pa.int64()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(matrix, pa.float32()), dimensions),
        }
    )


def _among(entries: Iterable[int]) -> str:
    numbers = sorted(entries)
    return "entry IN ({})".format(", ".join(map(str, numbers))) if numbers else "false"


def _matrix(table: pa.Table) -> Floats:
    column = table["vector"].combine_chunks()
    values: Floats = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1) if len(column) else values.reshape(0, 1)


def _found(table: pa.Table, query: Floats) -> list[Found]:
    if not len(table):
        return []
    if "_distance" in table.column_names:
        # of the full vectors: ``refine`` has replaced what the codes estimated
        cosines = 1.0 - table["_distance"].to_numpy()
    else:
        vectors = _matrix(table)
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
        cosines = vectors @ query / np.maximum(norms, 1e-12)
        table = table.drop_columns(["vector"])
    words = table["_score"].to_pylist() if "_score" in table.column_names else [0.0] * len(table)
    rows = table.to_pylist()
    return [
        Found(
            entry=row["entry"],
            number=row["number"],
            text=row["text"][row["lead"] :],
            page=row["page"],
            heading=row["heading"],
            start=row["start"],
            end=row["end"],
            similarity=float(cosine),
            words=float(score),
        )
        for row, cosine, score in zip(rows, cosines, words, strict=True)
    ]
