"""Everything the store service is made of, built from settings and taken apart again in order."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import time

from lmtower.config.types import Tower
from lmtower.stores.blobs import Blobs
from lmtower.stores.catalogue import Catalogue
from lmtower.stores.embed import Embedder
from lmtower.stores.extract import Limits
from lmtower.stores.jobs import Jobs
from lmtower.stores.launch import Personas
from lmtower.stores.lease import Lease
from lmtower.stores.pipeline import Pipeline, Width
from lmtower.stores.schema import connect
from lmtower.stores.search import Searcher
from lmtower.stores.vectors import Vectors

WORD_VECTORS_WEIGHT = 0.5


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are and what is allowed; ``secret`` is what the gateway proves itself with."""

    folder: Path
    database: str
    uri: str
    gateway: str
    key: str
    secret: str
    personas: Personas
    vector_weight: float = 1.0
    max_file_bytes: int = 256 * 1024**2
    limits: Limits = field(default_factory=Limits)
    width: Width = field(default_factory=Width)


def settings_of(tower: Tower, data_dir: Path, gateway: str, key: str, secret: str, personas: Personas) -> Settings:
    folder = data_dir / "stores"
    stores = tower.stores
    return Settings(
        folder=folder,
        database=tower.database or f"sqlite:///{folder / 'catalogue.db'}",
        uri=stores.uri or str(folder / "vectors"),
        gateway=gateway,
        key=key,
        secret=secret,
        personas=personas,
        vector_weight=_vector_weight(stores.vector_weight, personas.model),
        max_file_bytes=stores.max_file,
        limits=Limits(pages=stores.max_pages, seconds=stores.max_seconds),
        width=Width(readers=max(1, min(4, (os.cpu_count() or 2) // 2))),
    )


def _vector_weight(given: float | None, model: str) -> float:
    """Words alone find more than word vectors do; the weights are those that ``benchmarks/retrieval.py`` chose."""
    if given is not None:
        return given
    return WORD_VECTORS_WEIGHT if "wordllama" in model.lower() else 1.0


@dataclass(frozen=True, slots=True)
class Service:
    settings: Settings
    catalogue: Catalogue
    vectors: Vectors
    blobs: Blobs
    embedder: Embedder
    pipeline: Pipeline
    searcher: Searcher
    jobs: Jobs
    lease: Lease

    def close(self) -> None:
        self.pipeline.close()
        self.embedder.close()
        self.lease.release()
        self.catalogue.engine.dispose()


def build(settings: Settings, now: Callable[[], float] = time) -> Service:
    """Open everything. The pipeline is started by the one process that gets the lease."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    engine = connect(settings.database)
    catalogue = Catalogue(engine, now)
    vectors = Vectors(settings.uri)
    # file contents lie beside the vectors in a bucket, so that any tower can read what another was given
    contents = f"{settings.uri.rstrip('/')}/files" if "://" in settings.uri else str(settings.folder / "files")
    blobs = Blobs(contents, settings.folder / "spool")
    embedder = Embedder(settings.gateway, settings.key, settings.secret, settings.personas)
    jobs = Jobs(engine)
    pipeline = Pipeline(jobs, catalogue, vectors, blobs, embedder, settings.limits)
    searcher = Searcher(catalogue, vectors, embedder, pipeline, settings.vector_weight)
    lease = Lease(engine, settings.folder / "ingest.lock")
    lease.when_held(lambda: pipeline.start(settings.width))
    return Service(settings, catalogue, vectors, blobs, embedder, pipeline, searcher, jobs, lease)
