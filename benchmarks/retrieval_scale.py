"""Search at size: generated vectors, exact answers; latency and recall of LanceDB as lmtower uses it, and neighbours.

``python retrieval_scale.py ENGINE ROWS FOLDER STEP`` takes one step of one engine in a process of its own and prints a
line of JSON. Steps are ``add``, ``index`` (where the engine has one) and ``ask``; what they build stays in FOLDER.
Neighbours run in a virtual environment of their own, so this file imports nothing of the project before it knows.

Vectors are 768 numbers: a topic (one of sqrt(rows) * 8) plus noise of nearly its length, normalised; neighbours of one
topic have a cosine of about 0.55, as chunks of one subject have. Texts are 40 words drawn by Zipf's law from 50,000, of
which the thirty commonest are left out, as the index leaves out stop words.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

DIMENSIONS = 768
PART = 10_000
QUERIES = 200
TOP = 10
NOISE = 0.9
STOP_WORDS = 30
IN_FILE = 1000
STORE = "vs_bench"


def topics(rows: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((int(rows**0.5 * 8), DIMENSIONS), dtype=np.float32)


def vectors(rows: int, seed: int, count: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = topics(rows)
    made = centres[random.integers(0, len(centres), count)]
    made = made + NOISE * random.standard_normal((count, DIMENSIONS), dtype=np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def parts(rows: int) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, rows, PART):
        yield start, vectors(rows, 1000 + start, min(PART, rows - start))


def texts(seed: int, count: int, words: int) -> list[str]:
    random = np.random.default_rng(seed)
    chance = 1 / np.arange(1 + STOP_WORDS, 50_001 + STOP_WORDS)
    drawn = random.choice(50_000, (count, words), p=chance / chance.sum())
    return [" ".join(f"w{word}" for word in row) for row in drawn]


def questions(rows: int) -> tuple[np.ndarray, list[str]]:
    """Vectors and words to ask with."""
    return vectors(rows, 5, QUERIES), texts(6, QUERIES, 6)


def exact(rows: int, folder: Path) -> np.ndarray:
    """The true nearest rows of every query; kept, because all engines are asked the same."""
    kept = folder / f"exact-{rows}.npy"
    if kept.exists():
        return np.load(kept)
    asked, _ = questions(rows)
    best = np.full((QUERIES, TOP), -2.0, dtype=np.float32)
    names = np.zeros((QUERIES, TOP), dtype=np.int64)
    for start, part in parts(rows):
        scores = np.hstack((best, asked @ part.T))
        ids = np.hstack((names, np.broadcast_to(np.arange(start, start + len(part)), (QUERIES, len(part)))))
        order = np.argpartition(-scores, TOP, axis=1)[:, :TOP]
        best, names = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    np.save(kept, names)
    return names


def measure(search: Callable[[int], list[int]], truth: np.ndarray | None) -> dict[str, float]:
    for i in range(10):
        search(i)
    seconds, right = [], 0
    worked = time.process_time()
    for i in range(QUERIES):
        started = time.perf_counter()
        found = search(i)
        seconds.append(time.perf_counter() - started)
        if truth is not None:
            right += len(set(found[:TOP]) & set(truth[i].tolist()))
    cpu = (time.process_time() - worked) / QUERIES * 1000
    p5, p50, p95 = np.percentile(seconds, [5, 50, 95]) * 1000
    return {
        "p5_ms": p5,
        "p50_ms": p50,
        "p95_ms": p95,
        "cpu_ms": cpu,
        "recall": right / (QUERIES * TOP) if truth is not None else float("nan"),
    }


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def lmtower(rows: int, folder: Path, step: str) -> dict[str, Any]:
    """In a tower's data folder, so that ``retrieval_tower`` can serve what is built here."""
    from lmtower.stores.fusion import fuse
    from lmtower.stores.search import CANDIDATES
    from lmtower.stores.snapshot import Place, Ranked, wait
    from lmtower.stores.vectors import Row, Vectors, table_name

    store = Vectors(str(folder / "stores" / "vectors"))
    table = table_name(STORE, 1)
    if step == "add":
        for start, part in parts(rows):
            lines = texts(start, len(part), 40)
            store.add(table, [
                Row(1 + i // IN_FILE, i % IN_FILE, f"{i:032x}", text, 0, None, "", 0, len(text), one.tobytes())
                for i, (text, one) in enumerate(zip(lines, part, strict=True), start)
            ])  # fmt: skip
    if step != "ask":
        if step == "index":
            store.tend(table)
        return {}
    asked, words = questions(rows)
    snapshot = store.snapshot(table)
    assert snapshot is not None

    def shown(ranked: Ranked, i: int, near: Ranked = ()) -> list[int]:
        """What a search reads of the best ten rows, and which they are."""
        found = wait(snapshot.passages([row for row, _ in ranked[:TOP]], asked[i], dict(near)))
        places: list[Place] = [found[row].place for row, _ in ranked[:TOP]]
        return [(place.entry - 1) * IN_FILE + place.number for place in places]

    def hybrid(i: int) -> list[int]:
        near, worded = wait(both(i))
        return shown(fuse([[row for row, _ in near], [row for row, _ in worded]]), i, near)

    def by_vector(i: int) -> list[int]:
        near = wait(snapshot.by_vector(asked[i], CANDIDATES))
        return shown(near, i, near)

    async def both(i: int) -> list[Ranked]:
        searches = snapshot.by_vector(asked[i], CANDIDATES), snapshot.by_words(words[i], CANDIDATES)
        return await asyncio.gather(*searches)

    def bare(i: int) -> list[int]:
        """The least that LanceDB can be asked: the nearest row of one partition, nothing read."""
        query = snapshot.table.query().nearest_to(asked[i]).column("vector").nprobes(1).limit(1).with_row_id()
        return wait(query.select(["_rowid", "_distance"]).to_arrow())["_rowid"].to_pylist()

    truth = exact(rows, folder.parent)
    gc.freeze()  # as the store service does
    return {
        "bare": measure(bare, None),
        "vector": measure(by_vector, truth),
        "words": measure(lambda i: shown(wait(snapshot.by_words(words[i], CANDIDATES)), i), None),
        "hybrid": measure(hybrid, None),
    }


def chroma(rows: int, folder: Path, step: str) -> dict[str, Any]:
    import chromadb

    client = chromadb.PersistentClient(str(folder), chromadb.Settings(anonymized_telemetry=False))
    collection = client.get_or_create_collection("bench", metadata={"hnsw:space": "cosine"}, embedding_function=None)
    if step == "add":
        for start, part in parts(rows):
            lines = texts(start, len(part), 40)
            for at in range(0, len(part), 5000):
                ids = [str(start + at + i) for i in range(len(part[at : at + 5000]))]
                collection.add(ids=ids, embeddings=part[at : at + 5000], documents=lines[at : at + 5000])
    if step != "ask":
        return {}
    asked, _ = questions(rows)

    def near(i: int) -> list[int]:
        return [int(one) for one in collection.query(query_embeddings=asked[i : i + 1], n_results=TOP)["ids"][0]]

    return {"vector": measure(near, exact(rows, folder.parent))}


def qdrant(rows: int, folder: Path, step: str) -> dict[str, Any]:
    """Local mode compares with every vector, in numpy."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(folder))
    if step == "add":
        config = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
        client.create_collection("t", vectors_config=config)
        for start, part in parts(rows):
            payload = [{"text": text} for text in texts(start, len(part), 40)]
            client.upload_collection("t", part, payload, ids=range(start, start + len(part)), batch_size=1000)
    if step != "ask":
        return {}
    asked, _ = questions(rows)

    def near(i: int) -> list[int]:
        return [int(point.id) for point in client.query_points("t", query=asked[i].tolist(), limit=TOP).points]

    return {"vector": measure(near, exact(rows, folder.parent))}


def main(engine: str, rows: int, folder: Path, step: str) -> None:
    os.environ.setdefault("RUST_LOG", "error")
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{engine}-{rows}"
    started = time.perf_counter()
    result = {"lmtower": lmtower, "chroma": chroma, "qdrant": qdrant}[engine](rows, place, step)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result | {"seconds": seconds, "disk_bytes": disk_bytes(place), "peak_bytes": peak}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
