"""``python -m benchmarks retrieval [--rows N ...] [--only quality|build|ask|report]``: how well, how fast, beside whom.

*Quality* goes through everything that a client goes through: files are uploaded to a running store service, read, cut,
embedded over HTTP, indexed, and asked. The weight of the vectors is chosen on other questions than those reported.
Then size: LanceDB as lmtower drives it, on generated vectors, and a whole tower over them; Chroma and Qdrant's local
mode beside it. What is built stays, and so do results: the report shows all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.place import PROJECT, WORK
from benchmarks.processes import BenchError
from benchmarks.report import figure, machine, markdown
from benchmarks.retrieval_set import Document, documents, questions
from lmtower.stores import internal

FOLDER = WORK / "retrieval"
EMBED_PORT, STORE_PORT = 19300, 19301
NEIGHBOURS = ("chromadb==1.5.9", "qdrant-client==1.20.0", "numpy")
FUNCTIONS = 9_500
TUNED, ASKED = 400, 500
WEIGHTS = (0.1, 0.2, 0.5, 1.0)
ENGINES = ("chroma", "qdrant")
HEAD = [
    "engine",
    "vectors",
    "add s",
    "index s",
    "least query p50 ms",
    "vector p50 ms",
    "BM25 p50 ms",
    "hybrid p50 ms",
    "vector p95 ms",
]
HEAD += ["recall@10", "disk GB", "peak GB"]
TOWER = """\
engines:
  embed: {{url: "http://127.0.0.1:{port}", model: wordllama-l2-supercat-256}}
personas:
  embed-document: {{engine: embed, lane: batch}}
  embed-query: {{engine: embed}}
"""


@contextmanager
def service(data: Path, *, reuse: bool = False) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    """A store service over an embeddings server, both processes of their own."""
    if not reuse:
        shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True, exist_ok=True)
    (data / "tower.yaml").write_text(TOWER.format(port=EMBED_PORT))
    embed = subprocess.Popen([sys.executable, "-m", "benchmarks.retrieval_embed", str(EMBED_PORT)], cwd=PROJECT)
    argv = [
        sys.executable,
        "-m",
        "lmtower.stores.server",
        "--config",
        str(data / "tower.yaml"),
        "--data-dir",
        str(data),
    ]
    argv += ["--gateway", f"http://127.0.0.1:{EMBED_PORT}", "--listen", f"127.0.0.1:{STORE_PORT}"]
    server = subprocess.Popen(argv, stdin=subprocess.PIPE)
    headers = {"x-lmtower-internal": internal.read_or_create(data), "x-lmtower-client": "bench"}
    client = httpx.Client(base_url=f"http://127.0.0.1:{STORE_PORT}", headers=headers, timeout=120, trust_env=False)
    try:
        _until(lambda: client.get("/healthz").is_success)
        yield client, server
    finally:
        client.close()
        server.communicate()
        embed.terminate()
        embed.wait()


def _until(ready: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if ready():
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise TimeoutError("the store service did not start")


def ingest(client: httpx.Client, corpus: Sequence[Document]) -> tuple[str, dict[str, float]]:
    store = client.post("/v1/vector_stores", json={"name": "stdlib"}).json()["id"]
    started = time.perf_counter()

    def upload(document: Document) -> str:
        files = {"file": (document.name, document.text.encode())}
        return str(client.post("/v1/files", files=files, data={"purpose": "assistants"}).json()["id"])

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(upload, corpus))
    uploaded = time.perf_counter()
    for at in range(0, len(ids), 2000):
        client.post(
            f"/v1/vector_stores/{store}/file_batches", json={"file_ids": ids[at : at + 2000]}
        ).raise_for_status()
    while (progress := client.get(f"/v1/vector_stores/{store}/progress").json())["files_done"] < len(ids):
        time.sleep(0.5)
    seconds = time.perf_counter() - uploaded
    return store, {
        "files": len(ids),
        "chunks": progress["chunks"],
        "upload_s": uploaded - started,
        "ingest_s": seconds,
        "chunks_s": progress["chunks"] / seconds,
        "tokens_s": progress["tokens"] / seconds,
    }


def quality(
    client: httpx.Client, store: str, asked: Sequence[tuple[str, str]], weight: tuple[float, float]
) -> dict[str, float]:
    """recall@10 and mean reciprocal rank: is the function that the question was taken from among the first ten?"""
    ranks = []
    standouts = []
    options = {"hybrid_search": {"embedding_weight": weight[0], "text_weight": weight[1]}}
    for question, answer in asked:
        body = {"query": question, "max_num_results": 10, "ranking_options": options}
        hits = client.post(f"/v1/vector_stores/{store}/search", json=body).raise_for_status().json()["data"]
        names = list(dict.fromkeys(hit["filename"] for hit in hits))
        ranks.append(names.index(answer) + 1 if answer in names else 0)
        standouts.append(max((hit["scores"]["standout"] for hit in hits), default=0.0))
    found = [rank for rank in ranks if rank]
    return {
        "recall": len(found) / len(ranks),
        "mrr": sum(1 / rank for rank in found) / len(ranks),
        "standout": sorted(standouts)[len(standouts) // 20],
    }


def load(client: httpx.Client, store: str, asked: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Eight clients at once for a while; then how late the service's event loop was."""
    headers, url = dict(client.headers), str(client.base_url)

    async def all_of_them() -> list[float]:
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120, trust_env=False) as many:

            async def one(share: Sequence[tuple[str, str]]) -> list[float]:
                seconds = []
                for question, _ in share:
                    started = time.perf_counter()
                    (await many.post(f"/v1/vector_stores/{store}/search", json={"query": question})).raise_for_status()
                    seconds.append(time.perf_counter() - started)
                return seconds

            return [second for some in await asyncio.gather(*(one(asked[i::8]) for i in range(8))) for second in some]

    alone = []
    for question, _ in asked[:200]:
        started = time.perf_counter()
        client.post(f"/v1/vector_stores/{store}/search", json={"query": question})
        alone.append(time.perf_counter() - started)
    before = _metrics(client)
    started = time.perf_counter()
    seconds = sorted(asyncio.run(all_of_them()))
    rate = len(seconds) / (time.perf_counter() - started)
    after = _metrics(client)
    ticks = after["lmtower_store_loop_lag_ticks_total"] - before["lmtower_store_loop_lag_ticks_total"]
    lag = after["lmtower_store_loop_lag_seconds_total"] - before["lmtower_store_loop_lag_seconds_total"]
    return {
        "alone_p50_ms": sorted(alone)[len(alone) // 2] * 1000,
        "loaded_p50_ms": seconds[len(seconds) // 2] * 1000,
        "searches_s": rate,
        "lag_mean_ms": lag / max(1, ticks) * 1000,
        "lag_worst_ms": after["lmtower_store_loop_lag_worst_seconds"] * 1000,
    }


def _metrics(client: httpx.Client) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }


def built(engine: str, rows: int, step: str, python: str) -> None:
    """Take a step unless its result is there already: a million vectors are not written twice."""
    result = FOLDER / f"{engine}-{rows}-{step}.json"
    if result.exists() and step != "ask":
        return
    if step == "add":
        shutil.rmtree(FOLDER / f"{engine}-{rows}", ignore_errors=True)
    argv = [python, str(PROJECT / "benchmarks" / "retrieval_scale.py"), engine, str(rows), str(FOLDER), step]
    if step == "tower":
        argv = [python, "-m", "benchmarks.retrieval_tower", str(rows), str(FOLDER / f"{engine}-{rows}")]
    done = subprocess.run(argv, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{engine} at {rows:,} vectors: step {step!r} failed, see above")
    result.write_text(done.stdout.splitlines()[-1])


def neighbours_python() -> str:
    python = FOLDER / "venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(FOLDER / "venv")], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *NEIGHBOURS], check=True)
    return str(python)


def run_quality(*, reuse: bool) -> None:
    corpus = documents(FUNCTIONS)
    every = questions(corpus, TUNED + ASKED)
    tuned, asked = every[:TUNED], every[TUNED:]
    with service(FOLDER / "service", reuse=reuse) as (client, server):
        if reuse:
            found = client.get("/v1/vector_stores").json()["data"][0]
            counts = client.get(f"/v1/vector_stores/{found['id']}/progress").json()
            store, numbers = found["id"], {"files": counts["files"], "chunks": counts["chunks"]}
        else:
            store, numbers = ingest(client, corpus)
        tried = {weight: quality(client, store, tuned, (weight, 1.0)) for weight in WEIGHTS}
        best = max(WEIGHTS, key=lambda weight: tried[weight]["mrr"] + tried[weight]["recall"])
        rows = [
            (name, quality(client, store, asked, weight))
            for name, weight in (("vector", (1.0, 0.0)), ("BM25", (0.0, 1.0)), (f"hybrid ({best} : 1)", (best, 1.0)))
        ]
        under_load = load(client, store, asked)
        resident = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    size = f"{numbers['files']} functions, {numbers['chunks']} chunks"
    values = {**numbers, **under_load, "resident_MiB": resident, "standout_p5": rows[-1][1]["standout"]}
    table = [[name, f"{q['recall']:.3f}", f"{q['mrr']:.3f}"] for name, q in rows]
    text = f"{size}, {len(asked)} questions (weight from {TUNED} others)\n\n"
    text += markdown(["search", "recall@10", "MRR"], table)
    text += "\n" + markdown(["through the service", ""], [[name, figure(value)] for name, value in values.items()])
    (FOLDER / "quality.md").write_text(text)


def run_scale(sizes: Sequence[int], neighbours: bool, *, build: bool, ask: bool) -> None:
    for engine, rows in [("lmtower", rows) for rows in sizes] + [(one, min(sizes)) for one in ENGINES if neighbours]:
        python = sys.executable if engine == "lmtower" else neighbours_python()
        for step in ("add", "index") if build else ():
            if step == "add" or engine == "lmtower":
                built(engine, rows, step, python)
        for step in ("ask", "tower") if ask else ():
            if step == "ask" or engine == "lmtower":
                built(engine, rows, step, python)


def report() -> str:
    """Everything that was measured up to now, as tables."""
    found = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*-*-*.json")}
    names = sorted(
        {tuple(name.split("-")[:2]) for name in found}, key=lambda name: (int(name[1]), name[0] != "lmtower")
    )
    lines, towers = [], []
    for engine, rows in names:
        steps = {step: found.get(f"{engine}-{rows}-{step}") for step in ("add", "index", "ask", "tower")}
        asked = steps["ask"]
        if asked is None or steps["add"] is None:
            continue
        build = [figure(steps[step]["seconds"]) if steps[step] else "–" for step in ("add", "index")]
        speeds = [
            figure(asked[kind]["p50_ms"]) if kind in asked else "–" for kind in ("bare", "vector", "words", "hybrid")
        ]
        peak = max(step["peak_bytes"] for step in steps.values() if step and "peak_bytes" in step)
        sizes = [figure(asked["disk_bytes"] / 1e9), figure(peak / 1e9)]
        vector = asked["vector"]
        cells = [engine, f"{int(rows):,}", *build, *speeds, figure(vector["p95_ms"]), f"{vector['recall']:.3f}", *sizes]
        lines.append(cells)
        if steps["tower"]:
            values = [value if isinstance(value, str) else figure(value) for value in steps["tower"].values()]
            towers.append([f"{int(rows):,}", *values])
            head = list(steps["tower"])
    quality = FOLDER / "quality.md"
    parts = [machine(), quality.read_text() if quality.exists() else "", markdown(HEAD, lines)]
    if towers:
        parts.append(markdown(["vectors", *head], towers))
    return "\n\n".join(filter(None, parts))


def run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks retrieval", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000], help="vectors; 1000000 takes half an hour")
    parser.add_argument("--only", nargs="+", default=[], choices=("quality", "build", "ask", "report"))
    parser.add_argument("--alone", action="store_true", help="without the neighbours")
    parser.add_argument(
        "--reuse", action="store_true", help="ask the store of the last run instead of filling a new one"
    )
    options = parser.parse_args(argv)
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = set(options.only) or {"quality", "build", "ask"}
    if "quality" in wanted:
        run_quality(reuse=options.reuse)
    if wanted & {"build", "ask"}:
        run_scale(options.rows, not options.alone, build="build" in wanted, ask="ask" in wanted)
    print(report())
    return 0
