"""A whole tower over generated vectors: what a client waits for a search, and what the gateway feels of it.

``retrieval_scale`` filled the vector table; here its files are entered in the catalogue, `lmtower serve` runs on the
folder, and a client asks it over HTTP: gateway, store service, gateway again, an engine that knows the vector of every
question by heart, LanceDB, catalogue, and back. The engine's own time is told apart, because a real one takes longer.

How late the gateway's event loop runs is measured three times: with nothing to do; while eight clients search; and
while they search past the gateway, so that it only shares the processors with the searches. What the second has more
than the third is the gateway's own doing; so is its CPU time for a search, which bounds how long one can hold it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from sqlalchemy import delete, insert

from benchmarks.place import PROJECT
from benchmarks.retrieval_scale import DIMENSIONS, IN_FILE, QUERIES, STORE, exact, questions
from lmtower.ledger import Ledger
from lmtower.stores.schema import ENTRIES, FILES, STORES, connect

CLIENT = "bench"
CLIENTS = 8
LAG_SECONDS = 8.0
TOWER = """\
gateway: {{listen: "127.0.0.1:{gateway}", admin: "127.0.0.1:{admin}"}}
stores: {{listen: "127.0.0.1:{stores}"}}
engines:
  embed: {{url: "http://127.0.0.1:{engine}", model: by-heart}}
personas:
  embed-document: {{engine: embed, lane: batch}}
  embed-query: {{engine: embed}}
"""
PROBED = np.eye(1, DIMENSIONS, dtype="<f4")[0]


class ByHeart(ThreadingHTTPServer):
    """An embeddings engine that knows the vectors of its questions and counts the time that it takes itself."""

    daemon_threads = True

    def __init__(self, rows: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        vectors, texts = questions(rows)
        self.known = dict(zip(texts, vectors, strict=True))
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ByHeart

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        given = body["input"] if isinstance(body["input"], list) else [body["input"]]
        vectors = [self.server.known.get(text, PROBED).astype("<f4").tobytes() for text in given]
        data = [
            {"object": "embedding", "index": i, "embedding": base64.b64encode(vector).decode()}
            for i, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": len(given), "total_tokens": len(given)}
        self._send({"object": "list", "data": data, "model": body["model"], "usage": usage})

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": "by-heart", "object": "model"}]})

    def _send(self, value: object) -> None:
        data = json.dumps(value).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        self.wfile.write(head.encode() + data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def catalogue(folder: Path, rows: int) -> None:
    """The store, as if its files had been uploaded."""
    now = int(time.time())
    engine = connect(f"sqlite:///{folder / 'stores' / 'catalogue.db'}")
    store = {"id": STORE, "client": CLIENT, "name": "bench", "metadata": {}, "shared_with": [], "created_at": now}
    store |= {"last_active_at": now, "model": "by-heart", "probe": PROBED.tobytes()}
    files, entries = [], []
    for seq in range(1, -(-rows // IN_FILE) + 1):
        file = {"id": f"file-{seq}", "client": CLIENT, "filename": f"{seq}.txt", "purpose": "assistants", "bytes": 1}
        files.append(file | {"sha256": f"{seq:064x}", "created_at": now})
        entry = {"seq": seq, "store_id": STORE, "file_id": file["id"], "created_at": now, "status": "completed"}
        sizes = {"chunk_tokens": 512, "overlap_tokens": 64, "chunks": IN_FILE, "attributes": {}}
        entries.append(entry | {"stage": "done"} | sizes)
    with engine.begin() as connection:
        for table, values in ((STORES, [store]), (FILES, files), (ENTRIES, entries)):
            connection.execute(delete(table))
            connection.execute(insert(table), values)
    engine.dispose()


@contextmanager
def serving(folder: Path, rows: int) -> Iterator[tuple[httpx.Client, str, str, int]]:
    """A tower on the folder: a client of it, the URLs of its metrics and of its store service, its process."""
    engine = ByHeart(rows)
    names = ("gateway", "admin", "stores")
    ports = {name: _free_port() for name in names} | {"engine": int(engine.server_address[1])}
    (folder / "tower.yaml").write_text(TOWER.format(**ports))
    catalogue(folder, rows)
    ledger = Ledger.open(folder)
    key = ledger.create_key(CLIENT).secret
    ledger.shut()
    argv = [sys.executable, "-m", "lmtower", "serve", "-c", str(folder / "tower.yaml"), "--data-dir", str(folder)]
    process = subprocess.Popen(argv, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    headers = {"authorization": f"Bearer {key}"}
    client = httpx.Client(base_url=f"http://127.0.0.1:{ports['gateway']}", headers=headers, timeout=60, trust_env=False)
    try:
        deadline = time.monotonic() + 60
        while not _answers(client):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the tower on {folder} does not answer: {folder}/logs/stores.log")
            time.sleep(0.2)
        metrics, stores = f"http://127.0.0.1:{ports['admin']}/metrics", f"http://127.0.0.1:{ports['stores']}"
        yield client, metrics, stores, process.pid
    finally:
        client.close()
        process.terminate()
        process.wait(30)
        engine.shutdown()
        engine.server_close()


def ask(folder: Path, rows: int) -> dict[str, Any]:
    """Searches one after the other, then by eight clients at once."""
    _, texts = questions(rows)
    path = f"/v1/vector_stores/{STORE}/search"
    with serving(folder, rows) as (client, metrics, stores, gateway):
        idle = _resident(gateway)
        truth = exact(rows, folder.parent)
        vector_only = {"hybrid_search": {"embedding_weight": 1, "text_weight": 0}}
        _timed(client, path, texts, {})
        hybrid, _ = _timed(client, path, texts, {})
        near, hits = _timed(client, path, texts, {"ranking_options": vector_only})
        right = sum(len(set(found) & set(truth[i].tolist())) for i, found in enumerate(hits))
        embedding, _ = _timed(client, "/v1/embeddings", texts, {"model": "embed-query"}, field="input")
        trusted = {"x-lmtower-internal": (folder / "internal.key").read_text().strip(), "x-lmtower-client": CLIENT}
        with Lag(client, metrics) as resting:
            time.sleep(LAG_SECONDS)
        began = _cpu_seconds(gateway)
        with Lag(client, metrics) as searching:
            searches = asyncio.run(_together(str(client.base_url), dict(client.headers), path, texts))
        cpu = (_cpu_seconds(gateway) - began) / searches
        with Lag(client, metrics) as beside:
            asyncio.run(_together(stores, trusted, path, texts))
        return {
            "hybrid_p50_ms": _median(hybrid),
            "vector_p50_ms": _median(near),
            "recall": right / (10 * QUERIES),
            "embedding_p50_ms": _median(embedding),
            "gateway_cpu_ms_per_search": cpu * 1000,
            "lag_resting_ms": resting.told(),
            "lag_searching_ms": searching.told(),
            "lag_past_gateway_ms": beside.told(),
            "gateway_idle_MiB": idle,
            "gateway_after_MiB": _resident(gateway),
            "service_MiB": max(_resident(pid) for pid in _children(gateway)),
        }


class Lag:
    """The gateway's own metric, read ten times a second: each reading is the worst delay since the one before."""

    def __init__(self, client: httpx.Client, metrics: str) -> None:
        self._client, self._metrics = client, metrics
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.seconds: list[float] = []

    def __enter__(self) -> Lag:
        self._read()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def told(self) -> str:
        """Median, 99th percentile and maximum of the readings."""
        p50, p99 = np.percentile(self.seconds, [50, 99]) * 1000
        return f"{p50:.1f} / {p99:.1f} / {max(self.seconds) * 1000:.1f}"

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self.seconds.append(self._read())

    def _read(self) -> float:
        text = self._client.get(self._metrics).text
        lag = re.search(r"^lmtower_event_loop_lag_seconds (\S+)", text, re.MULTILINE)
        assert lag is not None
        return float(lag[1])


def _timed(
    client: httpx.Client, path: str, texts: Sequence[str], more: dict[str, Any], field: str = "query"
) -> tuple[list[float], list[list[int]]]:
    seconds, found = [], []
    for text in texts:
        started = time.perf_counter()
        reply = client.post(path, json={field: text} | more)
        seconds.append(time.perf_counter() - started)
        hits = reply.raise_for_status().json()["data"]
        found.append([_row(hit) for hit in hits if "file_id" in hit])
    return seconds, found


def _row(hit: dict[str, Any]) -> int:
    return (int(hit["file_id"].removeprefix("file-")) - 1) * IN_FILE + int(hit["provenance"]["chunk"])


async def _together(url: str, headers: dict[str, str], path: str, texts: Sequence[str]) -> int:
    """Eight clients at once, for ``LAG_SECONDS``; how many searches they made."""
    until = time.monotonic() + LAG_SECONDS
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False) as many:

        async def one(share: Sequence[str]) -> int:
            count = 0
            while time.monotonic() < until:
                (await many.post(path, json={"query": share[count % len(share)]})).raise_for_status()
                count += 1
            return count

        return sum(await asyncio.gather(*(one(texts[i::CLIENTS]) for i in range(CLIENTS))))


def _median(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 2] * 1000


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get(f"/v1/vector_stores/{STORE}").is_success
    except httpx.HTTPError:
        return False


def _resident(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    print(json.dumps(ask(Path(sys.argv[2]), int(sys.argv[1]))))
