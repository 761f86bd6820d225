"""A question to hits: embedded once, searched by vector and by words in every store, fused, reranked if wanted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from sqlalchemy import Row

from lmtower.stores.catalogue import Catalogue
from lmtower.stores.embed import Embedder, Rejected, Unavailable, same_model
from lmtower.stores.faults import ApiError
from lmtower.stores.filters import Predicate
from lmtower.stores.fusion import fuse
from lmtower.stores.pipeline import Pipeline, changed_model
from lmtower.stores.vectors import Floats, Found, Vectors, table_name

Store = Row[Any]
Key = tuple[str, int, int]  # store, file number, chunk number
Ranked = list[tuple[Key, Found]]
# so many candidates of each ranking are fused: deep enough that a hit which is middling in both can still win
CANDIDATES = 30


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
    found: Found
    standout: float | None = None
    rerank_score: float | None = None


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
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8, "lmtower-search"))

    def search(self, stores: Sequence[Store], question: Question, client: str) -> list[Hit]:
        """Best first. Blocks; call it from a thread. Raises ApiError."""
        started = time.perf_counter()
        for store in stores:
            self._check(store)
        try:
            hits = self._fused(stores, question, client)
            if question.rerank and self.embedder.personas.rerank and hits:
                hits = self._reranked(hits, question, client)
        except Unavailable as exc:
            raise ApiError(
                503, str(exc), code="embedding_unavailable", retry_after_seconds=max(1, round(exc.seconds))
            ) from exc
        except Rejected as exc:
            raise ApiError(400, str(exc), code="invalid_value", param="query") from exc
        self.catalogue.touch([store.id for store in stores])
        self.searches.count += 1
        self.searches.seconds += time.perf_counter() - started
        return [hit for hit in hits if hit.score >= question.threshold][: question.limit]

    def _check(self, store: Store) -> None:
        if self.catalogue.expired(store):
            raise ApiError(400, f"Vector store {store.id!r} has expired.", code="expired")
        try:
            fits = store.probe is None or same_model(store.probe, self.pipeline.current_probe())
        except Unavailable as exc:
            raise ApiError(503, str(exc), code="embedding_unavailable", retry_after_seconds=1) from exc
        if not fits:
            raise ApiError(409, changed_model(store.name, store.model, self.embedder), code="embedding_model_changed")

    def _fused(self, stores: Sequence[Store], question: Question, client: str) -> list[Hit]:
        chosen = {store.id: self._chosen(store, question.predicate) for store in stores}
        # a store without vectors needs no embedded question to find nothing
        stores = [store for store in stores if store.probe is not None and chosen[store.id] != []]
        if not stores:
            return []
        found: dict[Key, Found] = {}
        backgrounds: dict[str, tuple[float, float]] = {}
        rankings: list[list[Key]] = []
        weights: list[float] = []
        for text in question.queries:
            vector = self.embedder.query(text, client)
            depth = max(CANDIDATES, 2 * question.limit)
            near: list[Future[Ranked]] = []
            worded: list[Future[Ranked]] = []
            for store in stores:
                if (background := self._background(store, vector)) is not None:
                    backgrounds.setdefault(store.id, background)
                near.append(self.pool.submit(self._near, store, vector, depth, chosen[store.id]))
                worded.append(self.pool.submit(self._worded, store, text, vector, depth, chosen[store.id]))
            vector_weight = self.vector_weight if question.vector_weight is None else question.vector_weight
            for futures, weight in ((near, vector_weight), (worded, question.words_weight)):
                ranked = [item for future in futures for item in future.result()]
                ranked.sort(key=lambda item: -(item[1].words or item[1].similarity))
                found |= {key: one for key, one in ranked if key not in found or one.words}
                rankings.append([key for key, _ in ranked])
                weights.append(weight)
        return self._hits(stores, fuse(rankings, weights), found, backgrounds)

    def _background(self, store: Store, vector: Floats) -> tuple[float, float] | None:
        """Mean and deviation of the similarity of the question to any chunk."""
        sample = self.vectors.sample(table_name(store.id, store.generation))
        if sample is None:
            return None
        similarities = sample @ (vector / max(float(np.linalg.norm(vector)), 1e-12))
        return float(similarities.mean()), max(float(similarities.std()), 1e-6)

    def _near(self, store: Store, vector: Floats, depth: int, chosen: list[int] | None) -> Ranked:
        hits = self.vectors.by_vector(table_name(store.id, store.generation), vector, depth, chosen)
        return [((store.id, *one.key), one) for one in hits]

    def _worded(self, store: Store, text: str, vector: Floats, depth: int, chosen: list[int] | None) -> Ranked:
        hits = self.vectors.by_words(table_name(store.id, store.generation), text, vector, depth, chosen)
        return [((store.id, *one.key), one) for one in hits]

    def _chosen(self, store: Store, predicate: Predicate | None) -> list[int] | None:
        """Numbers of the files that pass the filter; None without a filter."""
        if predicate is None:
            return None
        return [seq for seq, row in self.catalogue.findable(store.id).items() if predicate(row.attributes)]

    def _hits(
        self,
        stores: Sequence[Store],
        fused: Sequence[tuple[Key, float]],
        found: Mapping[Key, Found],
        backgrounds: Mapping[str, tuple[float, float]],
    ) -> list[Hit]:
        """Chunks whose file is done and still there, each text once."""
        files = {
            store.id: self.catalogue.findable(store.id, {key[1] for key, _ in fused if key[0] == store.id})
            for store in stores
        }
        hits = []
        seen: set[str] = set()
        for key, score in fused:
            one = found[key]
            file = files[key[0]].get(one.entry)
            if file is None or one.text in seen:
                continue
            seen.add(one.text)
            mean, deviation = backgrounds.get(key[0], (0.0, 0.0))
            standout = (one.similarity - mean) / deviation if deviation else None
            hits.append(Hit(key[0], file.file_id, file.filename, file.attributes, score, one, standout))
        return hits

    def _reranked(self, hits: list[Hit], question: Question, client: str) -> list[Hit]:
        texts = [hit.found.text for hit in hits[:CANDIDATES]]
        ranked = self.embedder.rerank(question.queries[0], texts, client)
        return [replace(hits[index], score=score, rerank_score=score) for index, score in ranked if index < len(texts)]
