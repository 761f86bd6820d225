"""``kill -9`` in the middle of ingesting 1,000 files: nothing missing, nothing double, nothing embedded twice."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import lancedb
import msgspec

from lmtower.stores import internal
from lmtower.stores.pipeline import BATCH_TEXTS, Width
from lmtower.stores.snapshot import Place
from tests.stores.embedding import EmbeddingGateway

TOWER = """\
engines:
  embed: {{url: "{url}", model: test-model}}
personas:
  embed-document: {{engine: embed, lane: batch}}
  embed-query: {{engine: embed}}
"""
FILES = 1000


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def start(folder: Path, gateway: str, port: int) -> tuple[subprocess.Popen[bytes], httpx.Client]:
    argv = [sys.executable, "-m", "lmtower.stores.server", "--config", str(folder / "tower.yaml")]
    argv += ["--data-dir", str(folder), "--gateway", gateway, "--listen", f"127.0.0.1:{port}"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE)
    headers = {"x-lmtower-internal": internal.read_or_create(folder), "x-lmtower-client": "ada"}
    transport = httpx.HTTPTransport(retries=0)
    http = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60, transport=transport)
    deadline = time.monotonic() + 60
    while True:
        try:
            if http.get("/healthz").is_success:
                return process, http
        except httpx.HTTPError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)


def text_of(number: int) -> str:
    """Three chunks of about 100 tokens; the last of every tenth file is the same text."""
    words = f"file {number} says something about topic {number % 17}. "
    last = "the same closing words everywhere. " if number % 10 == 0 else f"closing words of {number}. "
    return "\n\n".join((words * 6, f"second part of {number}. " * 12, last * 12))


def wait_for(what: str, http: httpx.Client, store: str, enough: int, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while http.get(f"/v1/vector_stores/{store}/progress").json()[what] < enough:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_kill_in_the_middle_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Killed while reading, while embedding and while indexing, a thousand files end with exactly the right chunks."""
    log = tmp_path / "embedded.jsonl"
    gateway = EmbeddingGateway(log=log, delay_seconds=0.02)
    gateway.start()
    (tmp_path / "tower.yaml").write_text(TOWER.format(url=gateway.url))
    port = free_port()
    process, http = start(tmp_path, gateway.url, port)
    store = http.post("/v1/vector_stores", json={"name": "thousand"}).json()["id"]
    chunking = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}
    ids = [
        http.post("/v1/files", files={"file": (f"{i}.txt", text_of(i))}, data={"purpose": "assistants"}).json()["id"]
        for i in range(FILES)
    ]
    http.post(f"/v1/vector_stores/{store}/file_batches", json={"file_ids": ids, "chunking_strategy": chunking})
    for what, enough in (("chunks", 60), ("chunks_done", 900), ("files_done", 500)):
        wait_for(what, http, store, enough)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        http.close()
        process, http = start(tmp_path, gateway.url, port)
    wait_for("files_done", http, store, FILES)
    final = http.get(f"/v1/vector_stores/{store}").json()
    assert (final["status"], final["file_counts"]["completed"], final["file_counts"]["failed"]) == (
        "completed",
        FILES,
        0,
    )
    rows = lancedb.connect(tmp_path / "stores" / "vectors").open_table(f"{store}_1").to_arrow()
    places = [msgspec.json.decode(place, type=Place) for place in rows["place"].to_pylist()]
    keys = [(place.entry, place.number) for place in places]
    assert [place.entry for place in places] == rows["entry"].to_pylist()
    chunks = http.get(f"/v1/vector_stores/{store}/progress").json()["chunks"]
    assert len(keys) == len(set(keys)) == chunks
    assert len({entry for entry, _ in keys}) == FILES
    times = Counter(json.loads(line) for line in log.read_text().splitlines())
    texts = set(rows["text"].to_pylist())
    assert {text for text in times if "lmtower asks" not in text} == texts
    # only what the gateway was working on at a kill can come twice: its answer had nobody to go to
    again = sum(count - 1 for text, count in times.items() if text in texts)
    assert again <= 3 * Width().embedders * BATCH_TEXTS
    process.stdin.close()  # type: ignore[union-attr]
    assert process.wait(20) in (0, -signal.SIGTERM)
    http.close()
    gateway.stop()


def test_the_service_ends_when_its_parent_does(tmp_path: Path) -> None:
    """Closing standard input ends the process and its readers: no orphan survives a killed tower."""
    gateway = EmbeddingGateway()
    gateway.start()
    (tmp_path / "tower.yaml").write_text(TOWER.format(url=gateway.url))
    process, http = start(tmp_path, gateway.url, free_port())
    http.close()
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(20) in (0, -signal.SIGTERM)
    gateway.stop()
