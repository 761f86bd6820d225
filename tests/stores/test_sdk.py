"""The OpenAI SDK against the service, unchanged."""

from __future__ import annotations

import io

import openai
import pytest

from tests.stores.conftest import Running

RIVERS = {
    "rhine.md": "# Rhine\n\nThe Rhine flows through Basel, Strasbourg and Cologne into the North Sea.",
    "danube.md": "# Danube\n\nThe Danube flows through Vienna, Budapest and Belgrade into the Black Sea.",
    "elbe.md": "# Elbe\n\nThe Elbe flows through Dresden, Magdeburg and Hamburg.",
}


def test_upload_and_poll_completes_and_search_finds_the_file(running: Running) -> None:
    """The SDK's helper uploads, attaches and polls; a question then finds the right file first."""
    client = running.openai()
    store = client.vector_stores.create(name="rivers")
    for name, text in RIVERS.items():
        file = client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=(name, text.encode()), poll_interval_ms=50
        )
        assert (file.status, file.last_error) == ("completed", None)
    hits = client.vector_stores.search(store.id, query="Which river flows through Budapest?").data
    assert hits[0].filename == "danube.md"
    assert "Vienna" in hits[0].content[0].text
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    client.close()


def test_batches_helper_counts_every_file_and_a_broken_one_fails_alone(running: Running) -> None:
    """Of a batch with a broken PDF, the others complete and the PDF says why it did not."""
    client = running.openai()
    store = client.vector_stores.create(name="mixed")
    files = [("good.txt", b"A good text about apples."), ("broken.pdf", b"%PDF-1.7 nothing more")]
    batch = client.vector_stores.file_batches.upload_and_poll(store.id, files=files, poll_interval_ms=50)
    assert (batch.status, batch.file_counts.completed, batch.file_counts.failed) == ("completed", 1, 1)
    failed = client.vector_stores.file_batches.list_files(batch.id, vector_store_id=store.id, filter="failed").data
    assert failed[0].last_error is not None
    assert (failed[0].last_error.code, "broken" in failed[0].last_error.message) == ("invalid_file", True)
    client.close()


def test_store_life_create_update_list_delete(running: Running) -> None:
    """A store is created with metadata and expiry, changed, listed and deleted."""
    client = running.openai()
    store = client.vector_stores.create(
        name="first", metadata={"team": "x"}, expires_after={"anchor": "last_active_at", "days": 3}
    )
    assert (store.status, store.file_counts.total, store.metadata) == ("completed", 0, {"team": "x"})
    assert store.expires_at == (store.last_active_at or 0) + 3 * 86400
    changed = client.vector_stores.update(store.id, name="second", metadata=None, expires_after=None)
    assert (changed.name, changed.metadata, changed.expires_at) == ("second", {}, None)
    assert [one.id for one in client.vector_stores.list()] == [store.id]
    assert client.vector_stores.delete(store.id).deleted is True
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.retrieve(store.id)
    client.close()


def test_lists_are_cursor_pages_that_the_sdk_walks(running: Running) -> None:
    """Walking a list in small pages meets each thing once, in either order, and before turns back."""
    client = running.openai()
    made = [client.vector_stores.create(name=f"store {i}").id for i in range(7)]
    assert [one.id for one in client.vector_stores.list(limit=3)] == made[::-1]
    assert [one.id for one in client.vector_stores.list(limit=2, order="asc")] == made
    page = client.vector_stores.list(limit=2, order="asc", before=made[4])
    assert ([one.id for one in page.data], page.has_more) == (made[2:4], True)
    client.close()


def test_files_are_uploaded_listed_read_and_deleted(running: Running) -> None:
    """The Files API gives back the bytes that it was given, and deleting a file takes it out of its stores."""
    client = running.openai()
    file = client.files.create(file=("notes/a.txt", b"Some words about zebras."), purpose="assistants")
    assert (file.bytes, file.filename, file.status) == (24, "notes/a.txt", "processed")
    assert client.files.content(file.id).read() == b"Some words about zebras."
    assert [one.id for one in client.files.list(purpose="assistants")] == [file.id]
    assert [one.id for one in client.files.list(purpose="batch")] == []
    store = client.vector_stores.create(name="zoo", file_ids=[file.id])
    running.wait(store.id)
    assert len(client.vector_stores.search(store.id, query="zebras").data) == 1
    assert client.files.delete(file.id).deleted is True
    assert client.vector_stores.search(store.id, query="zebras").data == []
    assert client.vector_stores.retrieve(store.id).file_counts.total == 0
    client.close()


def test_attributes_filter_the_search_and_can_be_changed_later(running: Running) -> None:
    """Filters see the attributes as they are now, without embedding anything again."""
    client = running.openai()
    store = client.vector_stores.create(name="years")
    for year in (2019, 2021, 2023):
        text = f"Annual report {year}: the revenue grew.".encode()
        file = client.files.create(file=(f"{year}.txt", io.BytesIO(text)), purpose="assistants")
        attributes = {"year": year, "draft": year == 2023}
        client.vector_stores.files.create_and_poll(
            file.id, vector_store_id=store.id, attributes=attributes, poll_interval_ms=50
        )
    count = len(running.gateway.texts)

    def names(filters: object) -> set[str]:
        return {hit.filename for hit in client.vector_stores.search(store.id, query="revenue", filters=filters).data}  # type: ignore[arg-type]

    assert names({"type": "gte", "key": "year", "value": 2021}) == {"2021.txt", "2023.txt"}
    both = [{"type": "gte", "key": "year", "value": 2021}, {"type": "eq", "key": "draft", "value": False}]
    assert names({"type": "and", "filters": both}) == {"2021.txt"}
    file_id = next(
        one.id for one in client.vector_stores.files.list(store.id) if (one.attributes or {})["year"] == 2019
    )
    client.vector_stores.files.update(file_id, vector_store_id=store.id, attributes={"year": 2029})
    assert names({"type": "gt", "key": "year", "value": 2024}) == {"2019.txt"}
    assert len([text for text in running.gateway.texts[count:] if text != "revenue"]) == 0
    client.close()


def test_search_takes_several_queries_limits_and_thresholds(running: Running) -> None:
    """Two questions are fused, max_num_results cuts, and a threshold of 1 keeps only what is first everywhere."""
    store = running.put(RIVERS)
    client = running.openai()
    page = client.vector_stores.search(store.id, query=["Cologne", "Budapest"], max_num_results=2)
    assert {hit.filename for hit in page.data} == {"rhine.md", "danube.md"}
    best = client.vector_stores.search(store.id, query="Dresden", ranking_options={"score_threshold": 1.0}).data
    assert [hit.filename for hit in best] == ["elbe.md"]
    client.close()


def test_content_of_a_store_file_is_its_parsed_text(running: Running) -> None:
    """The content endpoint returns what was read, in order."""
    store = running.put({"a.html": "<h1>Title</h1><p>Hello <b>you</b>.</p><script>no()</script>"})
    client = running.openai()
    file = client.vector_stores.files.list(store.id).data[0]
    texts = [part.text for part in client.vector_stores.files.content(file.id, vector_store_id=store.id)]
    assert texts == ["# Title\n\nHello you."]
    client.close()


def test_poll_header_is_sent_while_work_is_under_way(running: Running) -> None:
    """A client that waits is told when to ask again, and not after it is done."""
    running.gateway.away = True
    client = running.openai()
    file = client.files.create(file=("a.txt", b"Some text."), purpose="assistants")
    store = client.vector_stores.create(name="slow", file_ids=[file.id])
    reply = client.vector_stores.files.with_raw_response.retrieve(file.id, vector_store_id=store.id)
    assert (reply.headers["openai-poll-after-ms"], reply.parse().status) == ("250", "in_progress")
    running.gateway.away = False
    running.wait(store.id)
    reply = client.vector_stores.files.with_raw_response.retrieve(file.id, vector_store_id=store.id)
    assert ("openai-poll-after-ms" in reply.headers, reply.parse().status) == (False, "completed")
    client.close()


def test_cancelled_batch_stops_and_its_files_are_cancelled(running: Running) -> None:
    """What was not done when the batch was cancelled is cancelled, and is not found."""
    running.gateway.away = True
    client = running.openai()
    store = client.vector_stores.create(name="cancelled")
    files = [client.files.create(file=(f"{i}.txt", f"text {i}".encode()), purpose="assistants").id for i in range(3)]
    batch = client.vector_stores.file_batches.create(store.id, file_ids=files)
    cancelled = client.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
    assert (cancelled.status, cancelled.file_counts.cancelled) == ("cancelled", 3)
    running.gateway.away = False
    assert client.vector_stores.search(store.id, query="text").data == []
    client.close()
