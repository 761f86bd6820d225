"""Ingestion, searches and deletions at the same time: no request fails, counts are exact, nothing is left behind."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import httpx
from sqlalchemy import func, select

from lmtower.stores.schema import CHUNKS, ENTRIES, GRAVES
from lmtower.stores.vectors import table_name
from tests.stores.conftest import Running
from tests.stores.test_ingest import wait_until

WRITERS, FILES = 3, 40
SAME = b"The same words again and again."


def upload(http: httpx.Client, name: str, content: bytes) -> str:
    """The id of a new file."""
    reply = http.post("/v1/files", files={"file": (name, content)}, data={"purpose": "assistants"})
    return str(reply.raise_for_status().json()["id"])


def left_in_sql(running: Running) -> dict[str, int]:
    """Rows of work that are not done."""
    with running.service.catalogue.engine.connect() as connection:
        return {
            table.name: connection.scalar(select(func.count()).select_from(table)) or 0 for table in (CHUNKS, GRAVES)
        }


def test_ingestion_search_and_deletion_beside_each_other(running: Running, tmp_path: Path) -> None:
    """A deleted file is never found again, at whatever stage it was; what stays is complete, and nothing else stays."""
    with running.http("ada") as http:
        store = http.post("/v1/vector_stores", json={"name": "s"}).raise_for_status().json()["id"]
    path = f"/v1/vector_stores/{store}"
    doomed: queue.Queue[str | None] = queue.Queue()
    gone: set[str] = set()
    kept: list[str] = []
    writing = threading.Event()

    def write(writer: int) -> None:
        with running.http("ada") as http:
            for number in range(FILES):
                text = f"# Whale {number}\n\nWhale {number} of writer {writer} sings.\n\n# More\n\nIts song {number}."
                file = upload(http, f"{writer}-{number}.md", text.encode())
                http.post(f"{path}/files", json={"file_id": file}).raise_for_status()
                if number % 3 == 0:
                    doomed.put(file)
                else:
                    kept.append(file)

    def delete() -> None:
        with running.http("ada") as http:
            while (file := doomed.get()) is not None:
                http.delete(f"/v1/files/{file}").raise_for_status()
                gone.add(file)

    def search() -> int:
        with running.http("ada") as http:
            for searches in count():
                before = set(gone)
                reply = http.post(f"{path}/search", json={"query": "whale song", "max_num_results": 50})
                found = {hit["file_id"] for hit in reply.raise_for_status().json()["data"]}
                assert not found & before
                if writing.is_set():
                    return searches
            raise AssertionError

    def same() -> None:
        """One content of several files that come and go: it is there as long as one of them is."""
        with running.http("ada") as http:
            while not writing.is_set():
                file = upload(http, "same.txt", SAME)
                assert http.get(f"/v1/files/{file}/content").raise_for_status().content == SAME
                http.delete(f"/v1/files/{file}").raise_for_status()

    with ThreadPoolExecutor(16) as pool:
        others = [pool.submit(work) for work in (delete, search, search, same, same, same)]
        try:
            for written in [pool.submit(write, writer) for writer in range(WRITERS)]:
                written.result(120)
        finally:
            writing.set()
            doomed.put(None)
        for other in others:
            other.result(60)

    assert running.wait(store)["file_counts"] == {
        "in_progress": 0, "failed": 0, "cancelled": 0, "completed": len(kept), "total": len(kept)
    }  # fmt: skip
    wait_until(lambda: left_in_sql(running) == {"store_chunks": 0, "store_graves": 0})
    with running.service.catalogue.engine.connect() as connection:
        rows = {row.seq: row.chunks for row in connection.execute(select(ENTRIES))}
    table = running.service.vectors._open(table_name(store, 1))
    assert table is not None
    entries = table.to_arrow()["entry"].to_pylist()
    assert {entry: entries.count(entry) for entry in set(entries)} == rows
    with running.http("ada") as http:
        stored = {http.get(f"/v1/files/{file}").raise_for_status().json()["sha256"] for file in kept}
    on_disk = {file.name for file in (tmp_path / "stores" / "files").rglob("*") if file.is_file()}
    assert (on_disk, list((tmp_path / "stores" / "spool").iterdir())) == (stored, [])
