"""One version of a vector table, to search in: what is written meanwhile is not seen, row numbers keep their meaning.

Theory of operation. A query of LanceDB costs milliseconds before it reads anything, and more for every column that it
returns; its blocking interface adds a hop between threads for every step, so searches use the other one and wait once
for all of them: ``by_vector`` and ``by_words`` are coroutines that run beside each other and bring row numbers and
scores alone; ``passages`` then reads the few rows that are shown. That is sound only within one version: compaction
renumbers rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.background_loop import LOOP
from lancedb.table import AsyncTable

# partitions to look into; recall@10 at 1,000,000 × 768 (122 partitions), milliseconds of CPU: 31 -> 0.90 and 16,
# 48 -> 0.97 and 21, 64 -> 0.99 and 20, 90 -> 1.00 and 25, all -> 1.00 and 28
PROBES = 12
PROBED_SHARE = 0.4
PARTITION_ROWS = 8192
Floats = npt.NDArray[np.float32]
_T = TypeVar("_T")
Ranked = list[tuple[int, float]]
"""Row numbers with what they are ranked by, best first."""


class Place(msgspec.Struct, array_like=True, frozen=True):
    """Where a chunk stands, as one column: reading eight columns of a row costs twice as much as reading one."""

    entry: int
    number: int
    lead: int
    page: int | None
    heading: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Passage:
    """One chunk as it is shown. ``similarity`` is the cosine between its vector and the question's."""

    place: Place
    text: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Safe to use from several threads."""

    table: AsyncTable
    rows: int
    near_index: bool = False
    """Every row is in the vector index: nothing else needs to be looked through, which saves a branch of the query."""
    word_index: bool = False
    """Every row is in the index of words."""

    async def by_vector(self, query: Floats, limit: int, entries: Iterable[int] | None = None) -> Ranked:
        """Nearest first, by cosine. ``entries`` restricts the search to these files before it starts."""
        # the codes of the index name the nearest rows, ``refine`` puts them in order by their full vectors
        search = self.table.query().nearest_to(query).column("vector").distance_type("cosine")
        search = search.nprobes(self._probes()).refine_factor(1).limit(limit)
        if self.near_index:
            search = search.fast_search()
        if entries is not None:
            search = search.where(among(entries))
        found = await search.with_row_id().select(["_rowid", "_distance"]).to_arrow()
        return list(zip(found["_rowid"].to_pylist(), (1.0 - found["_distance"].to_numpy()).tolist(), strict=True))

    async def by_words(self, words: str, limit: int, entries: Iterable[int] | None = None) -> Ranked:
        """Best BM25 score first; no chunk without one of the words."""
        if not words.strip():
            return []
        search = self.table.query().nearest_to_text(words, columns="text").limit(limit)
        if self.word_index:
            search = search.fast_search()
        if entries is not None:
            search = search.where(among(entries))
        found = await search.with_row_id().select(["_rowid", "_score"]).to_arrow()
        return list(zip(found["_rowid"].to_pylist(), found["_score"].to_pylist(), strict=True))

    async def passages(self, rows: Sequence[int], query: Floats, known: Mapping[int, float]) -> dict[int, Passage]:
        """The chunks at these rows. ``known`` has the cosines that ``by_vector`` found.

        Vectors are most of a table: reading those of ten rows costs as much as their texts and places together.
        """
        if not rows:
            return {}
        unknown = [row for row in rows if row not in known]
        shown = self.table.take_row_ids(list(rows)).with_row_id().select(["_rowid", "place", "text"]).to_arrow()
        found, cosines = await asyncio.gather(shown, self._cosines(unknown, query))
        cosines |= {row: known[row] for row in rows if row in known}
        places = [msgspec.json.decode(text, type=Place) for text in found["place"].to_pylist()]
        return {
            row: Passage(place, text[place.lead :], cosines[row])
            for row, place, text in zip(found["_rowid"].to_pylist(), places, found["text"].to_pylist(), strict=True)
        }

    async def _cosines(self, rows: list[int], query: Floats) -> dict[int, float]:
        if not rows:
            return {}
        found = await self.table.take_row_ids(rows).with_row_id().select(["_rowid", "vector"]).to_arrow()
        vectors = matrix(found)
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
        cosines = (vectors @ query / np.maximum(norms, 1e-12)).tolist()
        return dict(zip(found["_rowid"].to_pylist(), cosines, strict=True))

    def vectors(self, offsets: Sequence[int]) -> Floats:
        """The vectors of the rows at these places, in the order of the table."""
        return matrix(wait(self.table.take_offsets(sorted(offsets)).select(["vector"]).to_arrow()))

    def _probes(self) -> int:
        return max(PROBES, round(PROBED_SHARE * self.rows / PARTITION_ROWS))


def wait(work: Coroutine[Any, Any, _T]) -> _T:
    """What a coroutine of LanceDB comes to, on the loop that LanceDB keeps for its own blocking interface."""
    return cast(_T, LOOP.run(work))  # type: ignore[no-untyped-call]


def among(entries: Iterable[int]) -> str:
    numbers = sorted(entries)
    return "entry IN ({})".format(", ".join(map(str, numbers))) if numbers else "false"


def matrix(table: pa.Table) -> Floats:
    column = table["vector"].combine_chunks()
    values: Floats = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1) if len(column) else values.reshape(0, 1)
