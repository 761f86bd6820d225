"""Search at size: generated vectors, exact answers; latency and recall of LanceDB as lmtower uses it, and neighbours.

``python retrieval_scale.py ENGINE ROWS FOLDER`` runs one engine in a process of its own and prints one line of JSON.
Neighbours run in a virtual environment of their own, so this file imports nothing of the project before it knows.

Vectors are 768 numbers: a topic (one of sqrt(rows) * 8) plus noise of nearly its length, normalised; neighbours of one
topic have a cosine of about 0.55, as chunks of one subject have. Texts are 40 words drawn by Zipf's law from 50,000.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

DIMENSIONS = 768
PART = 10_000
QUERIES = 200
TOP = 10
NOISE = 0.9


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
    chance = 1 / np.arange(1, 50_001)
    drawn = random.choice(50_000, (count, words), p=chance / chance.sum())
    return [" ".join(f"w{word}" for word in row) for row in drawn]


def exact(rows: int, folder: Path) -> np.ndarray:
    """The true nearest rows of every query; kept, because all engines are asked the same."""
    kept = folder / f"exact-{rows}.npy"
    if kept.exists():
        return np.load(kept)
    asked = vectors(rows, 5, QUERIES)
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
    for i in range(QUERIES):
        started = time.perf_counter()
        found = search(i)
        seconds.append(time.perf_counter() - started)
        if truth is not None:
            right += len(set(found[:TOP]) & set(truth[i].tolist()))
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    return {"p50_ms": p50, "p95_ms": p95, "recall": right / (QUERIES * TOP) if truth is not None else float("nan")}


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def lmtower(rows: int, folder: Path, truth: np.ndarray) -> dict[str, Any]:
    from lmtower.stores.fusion import fuse
    from lmtower.stores.search import CANDIDATES
    from lmtower.stores.vectors import Row, Vectors

    store = Vectors(str(folder))
    started = time.perf_counter()
    for start, part in parts(rows):
        lines = texts(start, len(part), 40)
        numbers = range(start, start + len(part))
        store.add("t_1", [
            Row(i, 0, f"{i:032x}", text, 0, None, "", 0, len(text), vector.tobytes())
            for i, text, vector in zip(numbers, lines, part, strict=True)
        ])  # fmt: skip
    added = time.perf_counter()
    store.tend("t_1")
    built = time.perf_counter()
    asked, words = vectors(rows, 5, QUERIES), texts(6, QUERIES, 6)
    pool = ThreadPoolExecutor(2)

    def near(i: int) -> list[int]:
        return [one.entry for one in store.by_vector("t_1", asked[i], TOP)]

    def worded(i: int) -> list[int]:
        return [one.entry for one in store.by_words("t_1", words[i], asked[i], CANDIDATES)]

    def hybrid(i: int) -> list[int]:
        one = pool.submit(store.by_vector, "t_1", asked[i], CANDIDATES)
        other = pool.submit(store.by_words, "t_1", words[i], asked[i], CANDIDATES)
        return [key[0] for key, _ in fuse([[f.key for f in one.result()], [f.key for f in other.result()]])]

    return {
        "add_s": added - started,
        "index_s": built - added,
        "vector": measure(near, truth),
        "words": measure(worded, None),
        "hybrid": measure(hybrid, None),
    }


def chroma(rows: int, folder: Path, truth: np.ndarray) -> dict[str, Any]:
    import chromadb

    client = chromadb.PersistentClient(str(folder), chromadb.Settings(anonymized_telemetry=False))
    collection = client.create_collection("bench", metadata={"hnsw:space": "cosine"}, embedding_function=None)
    started = time.perf_counter()
    for start, part in parts(rows):
        lines = texts(start, len(part), 40)
        for at in range(0, len(part), 5000):
            ids = [str(start + at + i) for i in range(len(part[at : at + 5000]))]
            collection.add(ids=ids, embeddings=part[at : at + 5000], documents=lines[at : at + 5000])
    added = time.perf_counter()
    asked = vectors(rows, 5, QUERIES)

    def near(i: int) -> list[int]:
        return [int(one) for one in collection.query(query_embeddings=asked[i : i + 1], n_results=TOP)["ids"][0]]

    return {"add_s": added - started, "index_s": 0.0, "vector": measure(near, truth)}


def qdrant(rows: int, folder: Path, truth: np.ndarray) -> dict[str, Any]:
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(folder))
    config = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
    client.create_collection("t", vectors_config=config)
    started = time.perf_counter()
    for start, part in parts(rows):
        payload = [{"text": text} for text in texts(start, len(part), 40)]
        client.upload_collection("t", part, payload, ids=range(start, start + len(part)), batch_size=1000)
    added = time.perf_counter()
    asked = vectors(rows, 5, QUERIES)

    def near(i: int) -> list[int]:
        return [int(point.id) for point in client.query_points("t", query=asked[i].tolist(), limit=TOP).points]

    return {"add_s": added - started, "index_s": 0.0, "vector": measure(near, truth)}


def main(engine: str, rows: int, folder: Path) -> None:
    os.environ.setdefault("RUST_LOG", "error")
    folder.mkdir(parents=True, exist_ok=True)
    truth = exact(rows, folder)
    place = folder / f"{engine}-{rows}"
    result = {"lmtower": lmtower, "chroma": chroma, "qdrant": qdrant}[engine](rows, place, truth)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result | {"engine": engine, "rows": rows, "disk_bytes": disk_bytes(place), "peak_bytes": peak}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
