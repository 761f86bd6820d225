"""Ingestion: threads that take files from SQL, read them, have them embedded and put them into the vector tables.

Theory of operation. Three kinds of threads share nothing but the rows in ``jobs`` and two sets of what is under way:
*readers* (each with an extraction process of its own), *embedders* (each waits for one batch of the gateway), and one
*indexer*, the only writer of vector tables. A thread with nothing to do waits for the condition ``_news``, which
every step and every upload notifies. Killed at any point, the next process goes on where the rows say; the only
work that can be lost are answers of the gateway that had not arrived.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from lmtower.stores.blobs import Blobs
from lmtower.stores.catalogue import Catalogue
from lmtower.stores.embed import Embedder, Limited, Rejected, Unavailable, same_model
from lmtower.stores.extract import Extractor, Limits, Unreadable
from lmtower.stores.jobs import Batch, Jobs, Text
from lmtower.stores.upkeep import Upkeep
from lmtower.stores.vectors import Row, Vectors, table_name

BATCH_TEXTS = 32
BATCH_TOKENS = 16_000
GATHER_SECONDS = 0.3
COMMIT_CHUNKS = 2_000
COMMIT_SECONDS = 2.0
TEND_SECONDS = 5.0
SWEEP_SECONDS = 60.0
MODEL_SECONDS = 300.0
# a limit may be raised, a key made again, at any time: look before the gateway said that it is worth it
REST_SECONDS = 30.0

_log = logging.getLogger("lmtower.stores")


@dataclass(frozen=True, slots=True)
class Width:
    """How much runs at once."""

    readers: int = 2
    embedders: int = 4


class Pipeline:
    """Start it once; ``poke`` it when there is new work; ``close`` waits for what is being done."""

    def __init__(
        self, jobs: Jobs, catalogue: Catalogue, vectors: Vectors, blobs: Blobs, embedder: Embedder, limits: Limits
    ) -> None:
        self._jobs = jobs
        self._catalogue = catalogue
        self._vectors = vectors
        self._blobs = blobs
        self._embedder = embedder
        self._limits = limits
        self._news = threading.Condition()
        self._closed = False
        self._reading: set[int] = set()
        self._embedding: set[Text] = set()
        self._upkeep = Upkeep()
        self._committed = self._swept = self._asked = time.monotonic()
        self._fresh = 0
        self._resting: dict[str, tuple[float, str]] = {}
        self._probe: tuple[float, bytes] | None = None
        self._threads: list[threading.Thread] = []
        self._extractors: list[Extractor] = []
        self.trouble = ""
        self.embedded_texts = 0
        self.reused_texts = 0

    def start(self, width: Width = Width()) -> None:
        work: list[tuple[str, Callable[[], float]]] = [("index", self._index)]
        self._extractors = [Extractor(self._limits) for _ in range(width.readers)]
        work += [(f"read-{i}", partial(self._read, extractor)) for i, extractor in enumerate(self._extractors)]
        work += [(f"embed-{i}", self._embed) for i in range(width.embedders)]
        self._threads = [
            threading.Thread(target=self._repeat, args=(step,), name=f"lmtower-{name}", daemon=True)
            for name, step in work
        ]
        for thread in self._threads:
            thread.start()

    def poke(self) -> None:
        with self._news:
            self._news.notify_all()

    def trouble_of(self, client: str) -> str:
        """Why the files of this client wait; empty when nothing keeps them."""
        return self._resting.get(client, (0.0, self.trouble))[1]

    def close(self) -> None:
        self._closed = True
        self.poke()
        for thread in self._threads:
            thread.join()
        for extractor in self._extractors:
            extractor.close()

    def _repeat(self, step: Callable[[], float]) -> None:
        """Take steps until closed; each says how long to wait for news before the next. No trouble ends the thread."""
        while not self._closed:
            try:
                seconds = step()
            except Unavailable as exc:
                self._troubled(str(exc), exc.seconds)
            except (SQLAlchemyError, OSError, RuntimeError, ValueError) as exc:
                # a database that is locked, a disk that is full, a bucket that does not answer: rows stay as they are
                self._troubled(f"{type(exc).__name__}: {exc}", 2.0)
            else:
                if seconds:
                    self._wait(seconds)

    def _troubled(self, what: str, seconds: float) -> None:
        """Say so and pause. News do not shorten it: every other thread that fails would bring some."""
        if self.trouble != what:
            _log.warning("ingestion waits: %s", what)
        self.trouble = what
        until = time.monotonic() + min(seconds, REST_SECONDS)
        while not self._closed and (left := until - time.monotonic()) > 0:
            self._wait(left)

    def _wait(self, seconds: float) -> None:
        with self._news:
            if not self._closed:
                self._news.wait(seconds)

    # -- readers

    def _read(self, extractor: Extractor) -> float:
        return 0.0 if self._read_one(extractor) else 5.0

    def _read_one(self, extractor: Extractor) -> bool:
        with self._news:
            job = self._jobs.queued(self._reading)
            if job is None:
                return False
            self._reading.add(job.entry)
        try:
            with self._blobs.path(job.sha256) as path:
                chunks = extractor.extract(path, job.filename, job.chunk_tokens, job.overlap_tokens)
            self._jobs.chunked(job.entry, chunks)
            self._fresh += len(chunks)
        except Unreadable as exc:
            self._jobs.failed([job.entry], exc.code, str(exc))
        except FileNotFoundError:
            self._jobs.failed([job.entry], "server_error", "The uploaded content is gone from the disk.")
        finally:
            with self._news:
                self._reading.discard(job.entry)
                # one file of two chunks is no reason to wake everybody: a batch is, or the last file
                if self._fresh >= BATCH_TEXTS or not self._reading:
                    self._fresh = 0
                    self._news.notify_all()
        return True

    # -- embedders

    def _embed(self) -> float:
        return 0.0 if self._embed_one() else GATHER_SECONDS if self._reading else 5.0

    def _embed_one(self) -> bool:
        with self._news:
            now = time.monotonic()
            self._resting = {client: rest for client, rest in self._resting.items() if rest[0] > now}
            batch = self._jobs.texts(self._embedding, BATCH_TEXTS, BATCH_TOKENS, self._resting.keys())
            gathering = bool(self._reading) and time.monotonic() - self._asked < GATHER_SECONDS
            if batch is None or (gathering and len(batch.texts) < BATCH_TEXTS):
                return False
            self._asked = time.monotonic()
            mine = {(batch.store_id, digest) for digest in batch.texts}
            self._embedding |= mine
        try:
            self._fill(batch)
        except Limited as exc:
            # its files wait; those of other clients do not
            self._resting[batch.client] = (time.monotonic() + min(exc.seconds, REST_SECONDS), str(exc))
        finally:
            with self._news:
                self._embedding -= mine
                self._news.notify_all()
        return True

    def _fill(self, batch: Batch) -> None:
        store = self._jobs.store(batch.store_id)
        if store is None:
            return
        refusal = ""
        if not self._vectors.legible(table_name(store.id, store.generation)):
            refusal = other_version(store.name)
        elif not self._model_fits(store.id, store.probe):
            refusal = changed_model(store.name, store.model, self._embedder)
        if refusal:
            self._jobs.failed(self._jobs.owners(batch.store_id, batch.texts), "server_error", refusal)
            return
        # in this order: what leaves SQL between the two questions is in LanceDB by then
        known = self._jobs.known(store.id, batch.texts)
        unknown = [digest for digest in batch.texts if digest not in known]
        known |= self._vectors.known(table_name(store.id, store.generation), unknown)
        self.reused_texts += len(known)
        self._jobs.embedded(batch.store_id, known)
        self._ask(batch, {digest: text for digest, text in batch.texts.items() if digest not in known})
        self.trouble = ""

    def _ask(self, batch: Batch, texts: dict[str, str]) -> None:
        """A refused batch is halved until the text at fault is alone; its file fails, the others do not."""
        if not texts:
            return
        hashes = list(texts)
        try:
            vectors = self._embedder.documents(list(texts.values()), batch.client)
        except Rejected as exc:
            if len(texts) == 1:
                self._jobs.failed(self._jobs.owners(batch.store_id, hashes), "invalid_file", str(exc))
                return
            for half in (hashes[: len(hashes) // 2], hashes[len(hashes) // 2 :]):
                self._ask(batch, {digest: texts[digest] for digest in half})
            return
        self.embedded_texts += len(vectors)
        self._jobs.embedded(batch.store_id, dict(zip(hashes, vectors, strict=True)))

    def _model_fits(self, store_id: str, probe: bytes | None) -> bool:
        current = self.current_probe()
        if probe is None:
            self._jobs.sign(store_id, self._embedder.personas.model, current)
            return True
        return same_model(probe, current)

    def current_probe(self) -> bytes:
        """What the embedding model says to the fixed sentence; asked again every few minutes."""
        probe = self._probe
        if probe is None or time.monotonic() - probe[0] > MODEL_SECONDS:
            probe = self._probe = (time.monotonic(), self._embedder.probe())
        return probe[1]

    # -- indexer

    def _index(self) -> float:
        self._undo()
        if self._bury() or self._commit():
            return 0.0
        self._tend()
        return 0.2 if self._embedding or self._upkeep.changed() else 1.0

    def _undo(self) -> None:
        """Take out of LanceDB what a killed process, or a failed step, may have written halfway."""
        lost = self._jobs.recover()
        for row in lost:
            self._vectors.delete(table_name(row.store_id, row.generation), [row.seq])
        self._jobs.back([row.seq for row in lost])

    def _commit(self) -> bool:
        """Many small files are put together into one commit, as long as more are on their way."""
        waiting = self._jobs.waiting()
        soon = time.monotonic() - self._committed < COMMIT_SECONDS and bool(self._embedding)
        if not waiting or (waiting < COMMIT_CHUNKS and soon):
            return False
        taken = self._jobs.ready(COMMIT_CHUNKS)
        chunks = self._jobs.chunks([row.seq for row in taken])
        rows = [
            Row(c.entry, c.number, c.hash, c.text, c.lead, c.page, c.heading, c.start, c.end, c.vector) for c in chunks
        ]
        sizes = dict.fromkeys((row.entry for row in rows), 0)
        for row in rows:
            sizes[row.entry] += len(row.text.encode("utf-8", "surrogatepass")) + len(row.vector)
        if rows:
            name = table_name(taken[0].store_id, taken[0].generation)
            self._vectors.add(name, rows)
            self._upkeep.wrote(name, len(rows))
        self._jobs.indexed(sizes)
        self._committed = time.monotonic()
        return True

    def _bury(self) -> bool:
        graves = self._jobs.graves()
        whole = {grave.vectors for grave in graves if grave.entry is None}
        for name in whole:
            self._vectors.drop(name)
            self._upkeep.forget(name)
        for name in {grave.vectors for grave in graves} - whole:
            gone = self._vectors.delete(name, [grave.entry for grave in graves if grave.vectors == name])
            if gone:
                self._upkeep.wrote(name, gone)
        self._jobs.buried([grave.seq for grave in graves])
        return bool(graves)

    def _tend(self) -> None:
        now = time.monotonic()
        idle = now - self._committed > TEND_SECONDS
        due = [one for one in self._upkeep.changed() if self._upkeep.due(one, self._vectors.count(one), idle=idle)]
        for name in [*due, *self._upkeep.littered(now)]:
            changed = self._vectors.tend(name)
            self._upkeep.tended(name, time.monotonic(), changed=changed)
        if now - self._swept > SWEEP_SECONDS:
            self._swept = now
            for digest in self._catalogue.sweep():
                self._blobs.delete(digest, self._catalogue.needs)


def changed_model(store: str, model: str | None, embedder: Embedder) -> str:
    return (
        f"Store {store!r} was embedded by {model or 'another model'}; {embedder.personas.document!r} answers now as a "
        f"different model ({embedder.personas.model}). Embed it again: lmtower store rebuild {store}"
    )


def other_version(store: str) -> str:
    return f"Store {store!r} was written by another version of lmtower. Embed it again: lmtower store rebuild {store}"
