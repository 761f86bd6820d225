"""A question to hits: embedded once, searched by vector and by words in every store, fused, reranked if wanted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import Row

from lmtower.stores.catalogue import Catalogue
from lmtower.stores.embed import Embedder, Limited, Rejected, Unavailable, same_model
from lmtower.stores.faults import ApiError
from lmtower.stores.filters import Predicate
from lmtower.stores.fusion import fuse
from lmtower.stores.pipeline import Pipeline, changed_model, other_version
from lmtower.stores.snapshot import Floats, Passage, Ranked, Snapshot, wait
from lmtower.stores.vectors import Vectors, table_name

_T = TypeVar("_T")
Store = Row[Any]
Key = tuple[str, int]  # store, row of its snapshot
# so many candidates of each ranking are fused: a hit that is middling in both can still win. 30 instead of 20 change
# recall@10 by less than 0.01 (`benchmarks/retrieval.py`) and cost a search at 100,000 chunks a tenth of its time
CANDIDATES = 20
RERANKED = 30


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and how the answers are ranked."""

    queries: tuple[str, ...]
    limit: int = 10
    predicate: Predicate | None = None
    threshold: float = 0.0
    rerank: bool = True
    vector_weight: float | None = None
    words_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Hit:
    """One chunk with its file. ``score`` ranks; the other scores say why.

    ``standout`` is how many standard deviations nearer the chunk is to the question than any chunk of the store would
    be: what "relevant" means differs between embedding models, this does not. None in a store of few chunks.
    """

    store_id: str
    file_id: str
    filename: str
    attributes: Mapping[str, Any]
    score: float
    passage: Passage
    words: float
    standout: float | None = None
    rerank_score: float | None = None


@dataclass(frozen=True, slots=True)
class _Searched:
    """A store as one search sees it; ``entries`` are the files that pass the filter, None without one."""

    store: Store
    snapshot: Snapshot
    entries: list[int] | None


@dataclass(frozen=True, slots=True)
class _Asked:
    """The first of the questions, and how near it is to what the search by vector found."""

    vector: Floats
    cosines: Mapping[Key, float]


@dataclass(slots=True)
class Searches:
    """Counters for the metrics."""

    count: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Searcher:
    catalogue: Catalogue
    vectors: Vectors
    embedder: Embedder
    pipeline: Pipeline
    vector_weight: float = 1.0
    searches: Searches = field(default_factory=Searches)

    def search(self, stores: Sequence[Store], question: Question, client: str) -> list[Hit]:
        """Best first. Blocks; call it from a thread. Raises ApiError."""
        started = time.perf_counter()
        for store in stores:
            self._check(store)
        try:
            hits = self._fused(stores, question, client)
            if question.rerank and self.embedder.personas.rerank and hits:
                hits = self._reranked(hits, question, client)
        except Limited as exc:
            raise ApiError(exc.status, str(exc), code=exc.code, retry_after_seconds=max(1, round(exc.seconds))) from exc
        except Unavailable as exc:
            raise ApiError(
                503, str(exc), code="embedding_unavailable", retry_after_seconds=max(1, round(exc.seconds))
            ) from exc
        except Rejected as exc:
            raise ApiError(400, str(exc), code="invalid_value", param="query") from exc
        self.catalogue.touch(stores)
        self.searches.count += 1
        self.searches.seconds += time.perf_counter() - started
        return [hit for hit in hits if hit.score >= question.threshold][: question.limit]

    def _check(self, store: Store) -> None:
        if self.catalogue.expired(store):
            raise ApiError(400, f"Vector store {store.id!r} has expired.", code="expired")
        if not self.vectors.legible(table_name(store.id, store.generation)):
            raise ApiError(409, other_version(store.name), code="store_outdated")
        try:
            fits = store.probe is None or same_model(store.probe, self.pipeline.current_probe())
        except Unavailable as exc:
            raise ApiError(503, str(exc), code="embedding_unavailable", retry_after_seconds=1) from exc
        if not fits:
            raise ApiError(409, changed_model(store.name, store.model, self.embedder), code="embedding_model_changed")

    def _fused(self, stores: Sequence[Store], question: Question, client: str) -> list[Hit]:
        searched = self._searched(stores, question.predicate)
        if not searched:
            return []
        vectors = [self.embedder.query(text, client) for text in question.queries]
        weight = self.vector_weight if question.vector_weight is None else question.vector_weight
        rerank = question.rerank and self.embedder.personas.rerank is not None
        wanted = max(RERANKED, question.limit) if rerank else question.limit
        depth = max(CANDIDATES, 2 * question.limit, wanted)
        # what weighs nothing is not searched
        near = [_ranked(searched, Snapshot.by_vector, vector, depth) for vector in vectors if weight]
        worded = [
            _ranked(searched, Snapshot.by_words, text, depth) for text in question.queries if question.words_weight
        ]
        rankings = wait(_together(*near, *worded))
        words = {key: score for ranking in rankings[len(near) :] for key, score in reversed(ranking)}
        weights = [weight] * len(near) + [question.words_weight] * len(worded)
        fused = fuse([[key for key, _ in ranking] for ranking in rankings], weights)
        cosines = dict(rankings[0]) if near else {}
        return self._hits(searched, fused, words, _Asked(vectors[0], cosines), wanted)

    def _searched(self, stores: Sequence[Store], predicate: Predicate | None) -> list[_Searched]:
        """Those of the stores in which something can be found."""
        searched = []
        for store in stores:
            # a store without vectors needs no embedded question to find nothing
            snapshot = None if store.probe is None else self.vectors.snapshot(table_name(store.id, store.generation))
            entries = self._chosen(store, predicate)
            if snapshot is not None and entries != []:
                searched.append(_Searched(store, snapshot, entries))
        return searched

    def _hits(
        self,
        searched: Sequence[_Searched],
        fused: Sequence[tuple[Key, float]],
        words: Mapping[Key, float],
        asked: _Asked,
        wanted: int,
    ) -> list[Hit]:
        """The first ``wanted`` chunks whose file is done and still there, each text once."""
        backgrounds = {one.store.id: self._background(one.store, asked.vector) for one in searched}
        hits: list[Hit] = []
        texts: set[str] = set()
        # rows are read as many as are wanted at a time: mostly once
        for start in range(0, len(fused), wanted):
            part = fused[start : start + wanted]
            found: dict[Key, tuple[Passage, Row[Any]]] = {}
            for one in searched:
                found |= self._found(one, [key for key, _ in part if key[0] == one.store.id], asked)
            for key, score in part:
                if key not in found or found[key][0].text in texts:
                    continue
                passage, file = found[key]
                texts.add(passage.text)
                standout = _standout(passage.similarity, backgrounds[key[0]])
                named = (key[0], file.file_id, file.filename, file.attributes)
                hits.append(Hit(*named, score, passage, words.get(key, 0.0), standout))
            if len(hits) >= wanted:
                break
        return hits[:wanted]

    def _found(self, one: _Searched, keys: Sequence[Key], asked: _Asked) -> dict[Key, tuple[Passage, Row[Any]]]:
        """Passages with their files, as far as these may be shown."""
        known = {key[1]: asked.cosines[key] for key in keys if key in asked.cosines}
        passages = wait(one.snapshot.passages([row for _, row in keys], asked.vector, known))
        files = self.catalogue.findable(one.store.id, {passage.place.entry for passage in passages.values()})
        return {
            (one.store.id, row): (passage, files[passage.place.entry])
            for row, passage in passages.items()
            if passage.place.entry in files
        }

    def _background(self, store: Store, vector: Floats) -> tuple[float, float] | None:
        """Mean and deviation of the similarity of the question to any chunk."""
        sample = self.vectors.sample(table_name(store.id, store.generation))
        if sample is None:
            return None
        similarities = sample @ (vector / max(float(np.linalg.norm(vector)), 1e-12))
        return float(similarities.mean()), max(float(similarities.std()), 1e-6)

    def _chosen(self, store: Store, predicate: Predicate | None) -> list[int] | None:
        """Numbers of the files that pass the filter; None without a filter."""
        if predicate is None:
            return None
        return [seq for seq, row in self.catalogue.findable(store.id).items() if predicate(row.attributes)]

    def _reranked(self, hits: list[Hit], question: Question, client: str) -> list[Hit]:
        texts = [hit.passage.text for hit in hits]
        ranked = self.embedder.rerank(question.queries[0], texts, client)
        return [replace(hits[index], score=score, rerank_score=score) for index, score in ranked if index < len(texts)]


async def _ranked(
    searched: Sequence[_Searched], search: Callable[..., Coroutine[Any, Any, Ranked]], query: object, depth: int
) -> list[tuple[Key, float]]:
    """The rankings of several stores as one: both cosines and BM25 scores can be compared between stores."""
    found = await _together(*(search(one.snapshot, query, depth, one.entries) for one in searched))
    ranked = [((one.store.id, row), score) for one, rows in zip(searched, found, strict=True) for row, score in rows]
    return sorted(ranked, key=lambda item: -item[1])


async def _together(*work: Coroutine[Any, Any, _T]) -> list[_T]:
    """All of them beside each other, in the loop that waits for them."""
    return await asyncio.gather(*work)


def _standout(similarity: float, background: tuple[float, float] | None) -> float | None:
    return None if background is None else (similarity - background[0]) / background[1]
