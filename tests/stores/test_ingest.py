"""Ingestion through the API: deduplication, refused texts, engines that are away, changed models, expiry, reranking."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import lancedb
import pytest
from sqlalchemy.exc import OperationalError

from lmtower.stores import embed, pipeline
from lmtower.stores.access import OPERATOR
from lmtower.stores.extract import ChunkRow
from lmtower.stores.jobs import Jobs
from lmtower.stores.launch import Personas
from lmtower.stores.pipeline import Width
from lmtower.stores.vectors import Row, Vectors, table_name
from tests.stores import embedding
from tests.stores.conftest import SECRET, Running


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def names(running: Running, store_id: str, query: str, client: str = "ada") -> list[str]:
    with running.http(client) as http:
        reply = http.post(f"/v1/vector_stores/{store_id}/search", json={"query": query}).raise_for_status()
        return [hit["filename"] for hit in reply.json()["data"]]


def documents(running: Running) -> list[str]:
    return [text for text in running.gateway.texts if "lmtower asks" not in text]


def test_the_same_text_is_embedded_once_in_a_store(running: Running) -> None:
    """Equal files are two files, but one embedding; a search shows the passage once."""
    store = running.put({"a.txt": "Whales sing.", "b.txt": "Whales sing.", "c.txt": "Cats purr."})
    assert sorted(documents(running)) == ["Cats purr.", "Whales sing."]
    assert names(running, store.id, "whales").count("a.txt") + names(running, store.id, "whales").count("b.txt") == 1
    client = running.openai()
    client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("d.txt", b"Cats purr."), poll_interval_ms=50
    )
    assert sorted(documents(running))[:2] == ["Cats purr.", "Whales sing."]
    assert documents(running).count("Cats purr.") == 1
    client.close()


def test_documents_go_in_the_batch_lane_and_questions_do_not(running: Running) -> None:
    """Personas, lane and client of every embedding request are right; the secret proves who names the client."""
    store = running.put({"a.txt": "Whales sing."})
    names(running, store.id, "whales")
    seen = {(body["model"], headers.get("x-lmtower-lane")) for _, headers, body in running.gateway.requests}
    assert seen == {("embed-document", "batch"), ("embed-query", None)}
    owners = {headers.get("x-lmtower-on-behalf-of") for _, headers, _ in running.gateway.requests}
    assert owners == {"ada", None}
    assert {headers["x-lmtower-internal"] for _, headers, _ in running.gateway.requests} == {SECRET}


def test_the_operators_documents_are_the_towers_own_work(running: Running) -> None:
    """What the operator stores and asks is embedded on behalf of nobody."""
    store = running.put({"a.txt": "Whales sing."}, client=OPERATOR)
    names(running, store.id, "whales", OPERATOR)
    assert {headers.get("x-lmtower-on-behalf-of") for _, headers, _ in running.gateway.requests} == {None}


def test_a_client_over_its_limit_waits_alone(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a client whose limit is used up wait and say why to it alone; others go on; then they are done."""
    monkeypatch.setattr(pipeline, "REST_SECONDS", 0.2)
    running.gateway.limited = {"eve"}
    with running.http("eve", "eve") as eve:
        stored = eve.post("/v1/files", files={"file": ("e.txt", b"Eve sings.")}, data={"purpose": "assistants"}).json()
        hers = eve.post("/v1/vector_stores", json={"name": "e", "file_ids": [stored["id"]]}).json()["id"]
        store = running.put({"a.txt": "Whales sing."})
        progress = f"/v1/vector_stores/{hers}/progress"
        wait_until(lambda: eve.get(progress).json()["trouble"] == "30 requests a day are used up")
        assert names(running, store.id, "whales") == ["a.txt"]
        with running.http("ada") as ada:
            assert ada.get(f"/v1/vector_stores/{store.id}/progress").json()["trouble"] == ""
        running.gateway.limited = set()
        assert running.wait(hers)["file_counts"]["completed"] == 1


def test_a_search_over_the_limit_is_429_in_the_gateways_words(running: Running) -> None:
    """A question that the client's limits refuse is refused as any request would be, not as an engine that is away."""
    store = running.put({"a.txt": "Whales sing."})
    running.gateway.limited = {"ada"}
    with running.http("ada") as http:
        reply = http.post(f"/v1/vector_stores/{store.id}/search", json={"query": "whales"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "insufficient_quota")
        assert reply.json()["error"]["message"] == "30 requests a day are used up"


def test_a_text_that_the_engine_refuses_fails_its_file_alone(running: Running) -> None:
    """One refused text in a batch of many costs its own file only, with the engine's reason."""
    running.gateway.refuse = "POISON"
    client = running.openai()
    store = client.vector_stores.create(name="s")
    files = [(f"{i}.txt", f"Text number {i} {'POISON' if i == 5 else ''}".encode()) for i in range(9)]
    batch = client.vector_stores.file_batches.upload_and_poll(store.id, files=files, poll_interval_ms=50)
    assert (batch.file_counts.completed, batch.file_counts.failed) == (8, 1)
    failed = client.vector_stores.files.list(store.id, filter="failed").data[0]
    assert failed.last_error is not None
    assert "this text is too long" in failed.last_error.message
    client.close()


def test_an_engine_that_cannot_embed_is_not_asked_at_every_new_file(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither files that arrive nor other threads that fail shorten the pause: each embedder asks once."""
    monkeypatch.setattr(embed, "MEND_SECONDS", 600.0)
    monkeypatch.setattr(pipeline, "REST_SECONDS", 600.0)
    running.gateway.unable = True
    with running.http("ada") as ada:
        store = ada.post("/v1/vector_stores", json={"name": "s"}).json()["id"]
        path = f"/v1/vector_stores/{store}/progress"
        for number in range(80):
            upload = {"file": (f"{number}.txt", f"Whale {number} sings.".encode())}
            file = ada.post("/v1/files", files=upload, data={"purpose": "assistants"}).json()["id"]
            ada.post(f"/v1/vector_stores/{store}/files", json={"file_id": file}).raise_for_status()
            if number == 39:
                wait_until(lambda: len(running.gateway.requests) >= Width().embedders)
        wait_until(lambda: ada.get(path).json()["chunks"] == 80)
        assert "does not embed" in ada.get(path).json()["trouble"]
    assert len(running.gateway.requests) == Width().embedders


def test_search_while_the_engine_is_away_is_503_with_a_time(running: Running) -> None:
    """An engine that is away is told as such, and the search works again when it is back."""
    store = running.put({"a.txt": "Whales sing."})
    running.gateway.away = True
    with running.http("ada") as http:
        reply = http.post(f"/v1/vector_stores/{store.id}/search", json={"query": "whales"})
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert reply.json()["error"]["code"] == "embedding_unavailable"
    running.gateway.away = False
    assert names(running, store.id, "whales") == ["a.txt"]


def test_a_changed_model_is_refused_until_rebuild(launch: Callable[..., Running]) -> None:
    """Vectors of two models are never mixed: search and new files are refused with the command that mends it."""
    running = launch()
    store = running.put({"a.txt": "Whales sing.", "b.txt": "Cats purr."})
    old = table_name(store.id, 1)
    running.gateway.salt = "another model"
    running.service.pipeline._probe = None
    with running.http("ada") as http:
        refused = http.post(f"/v1/vector_stores/{store.id}/search", json={"query": "whales"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "embedding_model_changed")
        assert "lmtower store rebuild store" in refused.json()["error"]["message"]
        http.post(f"/v1/vector_stores/{store.id}/rebuild").raise_for_status()
        assert running.wait(store.id)["file_counts"]["completed"] == 2
    assert names(running, store.id, "whales")[0] == "a.txt"
    assert (running.service.vectors.count(table_name(store.id, 2)), running.service.vectors.count(old)) == (2, 0)


def test_a_table_of_another_version_is_refused_until_rebuild(
    launch: Callable[..., Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns of another version and vectors of another length: both are refused in words, one rebuild mends both."""
    running = launch()
    store = running.put({"a.txt": "Whales sing.", "b.txt": "Cats purr."})
    old = table_name(store.id, 1)
    database = lancedb.connect(tmp_path / "stores" / "vectors")
    foreign = database.open_table(old).to_arrow().select(["entry", "text", "vector"])
    database.create_table(old, foreign, mode="overwrite")
    running.service.vectors._tables.clear()
    running.service.vectors._legible.clear()
    monkeypatch.setattr(embedding, "DIMENSIONS", 32)
    running.service.pipeline._probe = None
    with running.http("ada") as http:
        path = f"/v1/vector_stores/{store.id}"
        refused = http.post(f"{path}/search", json={"query": "whales"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "store_outdated")
        assert "lmtower store rebuild store" in refused.json()["error"]["message"]
        late = http.post("/v1/files", files={"file": ("c.txt", b"Dogs bark.")}, data={"purpose": "assistants"}).json()
        http.post(f"{path}/files", json={"file_id": late["id"]}).raise_for_status()
        assert running.wait(store.id)["file_counts"]["failed"] == 1
        failed = http.get(f"{path}/files/{late['id']}").json()["last_error"]
        assert "lmtower store rebuild store" in failed["message"]
        http.post(f"{path}/rebuild").raise_for_status()
        assert running.wait(store.id)["file_counts"] == counts(completed=2, failed=1)
        http.post(f"{path}/files", json={"file_id": late["id"]}).raise_for_status()
        assert running.wait(store.id)["file_counts"] == counts(completed=3)
    assert names(running, store.id, "dogs")[0] == "c.txt"
    assert database.open_table(table_name(store.id, 2)).schema.field("vector").type.list_size == 32
    assert running.service.vectors.count(old) == 0


def counts(**some: int) -> dict[str, int]:
    """``file_counts`` of a store."""
    return dict.fromkeys(("in_progress", "failed", "cancelled", "completed"), 0) | some | {"total": sum(some.values())}


def test_expired_store_is_emptied_and_says_so(running: Running) -> None:
    """After its days without use a store is expired, cannot be searched, and its vectors are gone."""
    store = running.put({"a.txt": "Whales sing."}, expires_after={"anchor": "last_active_at", "days": 2})
    running.clock[0] = 86400 * 2 + 5
    with running.http("ada") as http:
        assert http.get(f"/v1/vector_stores/{store.id}").json()["status"] == "expired"
        reply = http.post(f"/v1/vector_stores/{store.id}/search", json={"query": "whales"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "expired")
    assert running.service.catalogue.sweep() == []
    running.service.pipeline._bury()
    assert running.service.vectors.count(table_name(store.id, 1)) == 0


def test_expired_file_is_deleted_everywhere(running: Running, tmp_path: Path) -> None:
    """A file with a lifetime leaves stores and disk when it is over."""
    with running.http("ada") as http:
        form = {"purpose": "assistants", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        file = http.post("/v1/files", files={"file": ("a.txt", b"Whales sing.")}, data=form).json()
        store = http.post("/v1/vector_stores", json={"name": "s", "file_ids": [file["id"]]}).json()
        running.wait(store["id"])
        running.clock[0] = 3700
        assert http.get(f"/v1/files/{file['id']}").status_code == 404
        assert running.service.catalogue.sweep() == [file["sha256"]]
        assert http.get(f"/v1/vector_stores/{store['id']}").json()["file_counts"]["total"] == 0


def test_rerank_persona_decides_the_order(launch: Callable[..., Running]) -> None:
    """With a rerank persona its order counts, and a client may switch it off."""
    running = launch(personas=Personas("embed-document", "embed-query", "rerank", "test/model"))
    store = running.put({"long.txt": "whales " * 5 + "sing songs in the deep sea", "short.txt": "whales"})
    with running.http("ada") as http:
        path = f"/v1/vector_stores/{store.id}/search"
        hits = http.post(path, json={"query": "whales sing songs in the deep sea"}).json()["data"]
        assert [hit["filename"] for hit in hits] == ["short.txt", "long.txt"]
        assert round(hits[0]["scores"]["rerank"], 6) == hits[0]["score"]
        options = {"ranker": "none"}
        plain = http.post(path, json={"query": "whales sing songs in the deep sea", "ranking_options": options}).json()
        assert [hit["filename"] for hit in plain["data"]] == ["long.txt", "short.txt"]


def test_a_bucket_uri_keeps_vectors_and_contents_there(launch: Callable[..., Running], tmp_path: Path) -> None:
    """With a URI instead of a folder, vectors and file contents both go there."""
    running = launch(uri=f"file://{tmp_path / 'bucket'}")
    store = running.put({"a.txt": "Whales sing."})
    assert names(running, store.id, "whales") == ["a.txt"]
    client = running.openai()
    file = client.files.list().data[0]
    assert client.files.content(file.id).read() == b"Whales sing."
    assert client.files.delete(file.id).deleted
    client.close()
    assert not [path for path in (tmp_path / "bucket" / "files").rglob("*") if path.is_file()]


def test_metrics_say_what_was_done(running: Running) -> None:
    """Files by stage, embedded texts, searches and the lag of the loop are there to be scraped."""
    store = running.put({"a.txt": "Whales sing."})
    names(running, store.id, "whales")
    with running.http() as http:
        text = http.get("/metrics").text
    for line in (
        'lmtower_store_files{stage="done"} 1',
        "lmtower_store_texts_embedded_total 1",
        "lmtower_store_searches_total 1",
    ):
        assert line in text
    assert "lmtower_store_loop_lag_worst_seconds" in text


def test_a_locked_database_delays_and_ends_nothing(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that SQL refuses is taken again; no thread of the pipeline ends, nothing is done twice."""
    real = Jobs.chunked
    failures = iter([OperationalError("UPDATE", {}, Exception("database is locked"))])

    def locked_once(jobs: Jobs, entry: int, chunks: Sequence[ChunkRow]) -> None:
        if (failure := next(failures, None)) is not None:
            raise failure
        real(jobs, entry, chunks)

    monkeypatch.setattr(Jobs, "chunked", locked_once)
    store = running.put({"a.txt": "Whales sing."})
    assert documents(running) == ["Whales sing."]
    assert names(running, store.id, "whales") == ["a.txt"]


def test_vectors_that_cannot_be_written_are_written_later(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that fails halfway is undone and made again from what is in SQL, without embedding again."""
    real = Vectors.add
    failures = iter([OSError("no space left on device")])

    def full_once(vectors: Vectors, name: str, rows: Sequence[Row]) -> None:
        real(vectors, name, rows)
        if (failure := next(failures, None)) is not None:
            raise failure

    monkeypatch.setattr(Vectors, "add", full_once)
    store = running.put({"a.txt": "Whales sing."})
    assert running.service.vectors.count(table_name(store.id, 1)) == 1
    assert documents(running) == ["Whales sing."]
