"""Two clients cannot see each other's stores and files: every route, as the other client."""

from __future__ import annotations

from urllib.parse import quote

import httpx
import pytest

from lmtower.stores.access import OPERATOR
from lmtower.stores.app import application
from tests.stores.conftest import SECRET, Running

BODIES: dict[str, object] = {
    "/search": {"query": "secret"},
    "/files": {"file_id": "FILE"},
    "/file_batches": {"file_ids": ["FILE"]},
    "/files/FILE": {"attributes": {"a": "b"}},
}


@pytest.fixture
def owned(running: Running) -> dict[str, str]:
    """Ada's store, file and batch."""
    client = running.openai("ada")
    store = client.vector_stores.create(name="ada's")
    batch = client.vector_stores.file_batches.upload_and_poll(
        store.id, files=[("s.txt", b"Ada's secret is blue.")], poll_interval_ms=50
    )
    file = client.vector_stores.files.list(store.id).data[0]
    client.close()
    return {"{store_id}": store.id, "{file_id}": file.id, "{batch_id}": batch.id}


def test_every_route_is_not_found_for_another_client(running: Running, owned: dict[str, str]) -> None:
    """404 wherever a store, a file or a batch of somebody else is named, and nothing of it in any list."""
    routes = [route for route in application(running.service).routes if "/v1/" in getattr(route, "path", "")]
    checked = 0
    with running.http("eve", "eve") as eve:
        for route in routes:
            path: str = route.path  # type: ignore[attr-defined]
            for name, value in owned.items():
                path = path.replace(name, value)
            if path == route.path:  # type: ignore[attr-defined]
                continue
            for method in sorted(route.methods - {"HEAD"}):  # type: ignore[attr-defined]
                ending = path.partition(owned["{store_id}"])[2].replace(owned["{file_id}"], "FILE")
                body = _named(BODIES.get(ending, {}), owned["{file_id}"])
                reply = eve.request(method, path, json=body if method == "POST" else None)
                assert (method, path, reply.status_code) == (method, path, 404)
                assert "secret" not in reply.text
                assert reply.json()["error"]["type"] == "invalid_request_error"
                checked += 1
        assert checked >= 18
        assert eve.get("/v1/vector_stores").json()["data"] == []
        assert eve.get("/v1/files").json()["data"] == []
    assert running.wait(owned["{store_id}"], "ada")["file_counts"]["completed"] == 1


def _named(body: object, file_id: str) -> object:
    if isinstance(body, dict):
        return {
            key: [file_id] if value == ["FILE"] else file_id if value == "FILE" else value
            for key, value in body.items()
        }
    return body


def test_a_client_cannot_put_anothers_file_into_its_own_store(running: Running, owned: dict[str, str]) -> None:
    """Knowing a file's id is not enough to read it through a store of one's own."""
    with running.http("eve") as eve:
        store = eve.post("/v1/vector_stores", json={"name": "eve's"}).json()["id"]
        for path, body in (
            ("files", {"file_id": owned["{file_id}"]}),
            ("file_batches", {"file_ids": [owned["{file_id}"]]}),
        ):
            assert eve.post(f"/v1/vector_stores/{store}/{path}", json=body).status_code == 404
        assert eve.post("/v1/vector_stores", json={"file_ids": [owned["{file_id}"]]}).status_code == 404


def test_internal_search_checks_stores_that_the_client_names(running: Running, owned: dict[str, str]) -> None:
    """For file_search, a persona's stores are granted by the tower file; those of the request must be the client's."""
    with running.http() as gateway:
        body = {"client": "eve", "query": "secret", "vector_store_ids": [owned["{store_id}"]]}
        assert gateway.post("/internal/search", json=body).status_code == 404
        body = {"client": "ada", "query": "secret", "vector_store_ids": [owned["{store_id}"]]}
        assert "blue" in gateway.post("/internal/search", json=body).json()["passages"]
        granted = gateway.post("/internal/search", json={"client": "eve", "query": "secret", "stores": ["ada's"]})
        assert granted.json()["data"][0]["filename"] == "s.txt"
        assert gateway.post("/internal/search", json={"client": "x", "query": "q", "stores": ["no"]}).status_code == 404


def test_shared_store_can_be_read_but_not_changed(running: Running, owned: dict[str, str]) -> None:
    """Sharing is by client id or name, gives search and reading, and can be taken back."""
    path = f"/v1/vector_stores/{owned['{store_id}']}"
    with running.http("ada") as ada, running.http("client-7", "eve") as eve:
        shared = ada.post(path, json={"shared_with": ["eve"]}).json()
        assert shared["shared_with"] == ["eve"]
        assert eve.post(f"{path}/search", json={"query": "blue"}).json()["data"][0]["filename"] == "s.txt"
        assert [one["id"] for one in eve.get("/v1/vector_stores").json()["data"]] == [owned["{store_id}"]]
        assert "shared_with" not in eve.get(path).json()
        for method, end in (
            ("DELETE", ""),
            ("POST", ""),
            ("POST", "/rebuild"),
            ("DELETE", f"/files/{owned['{file_id}']}"),
        ):
            assert eve.request(method, path + end, json={} if method == "POST" else None).status_code == 403
        ada.post(path, json={"shared_with": []})
        assert eve.get(path).status_code == 404


def test_without_the_secret_nothing_answers(running: Running) -> None:
    """Somebody who reaches the private port, but is not the gateway, is refused."""
    for headers in (
        {},
        {"x-lmtower-client": "ada"},
        {"x-lmtower-internal": SECRET},
        {"x-lmtower-client": "a", "x-lmtower-internal": "x"},
    ):
        for path in ("/v1/files", "/v1/vector_stores", "/vector_stores"):
            reply = httpx.get(running.url + path, headers=headers)
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        assert httpx.post(f"{running.url}/internal/search", headers=headers, json={}).status_code == 401
        assert httpx.post(f"{running.url}/v1/files", headers=headers, files={"file": b"x"}).status_code == 401


def test_a_store_outlives_the_key_that_made_it(running: Running, owned: dict[str, str]) -> None:
    """A client is its name: with a new key of the same name it has its stores, files and their shares as before."""
    with running.http("key_new", "ada") as ada:
        assert [one["id"] for one in ada.get("/v1/vector_stores").json()["data"]] == [owned["{store_id}"]]
        assert ada.get(f"/v1/files/{owned['{file_id}']}/content").content == b"Ada's secret is blue."


def test_names_outside_latin_1_are_told_apart(running: Running) -> None:
    """Two clients whose names no header can carry as they are do not become one."""
    with running.http("key_1", quote("Жанна")) as one, running.http("key_2", quote("Щукин")) as other:
        store = one.post("/v1/vector_stores", json={"name": "x", "shared_with": []}).json()["id"]
        assert other.get(f"/v1/vector_stores/{store}").status_code == 404
        one.post(f"/v1/vector_stores/{store}", json={"shared_with": ["Щукин"]}).raise_for_status()
        assert other.get(f"/v1/vector_stores/{store}").status_code == 200


def test_a_client_called_like_the_operator_is_refused(running: Running, owned: dict[str, str]) -> None:
    """The name of a key gives no rights."""
    with running.http("key_1", quote(OPERATOR, safe="")) as client:
        assert client.get("/v1/vector_stores").status_code == 403
    with running.http() as gateway:
        body = {"client": OPERATOR, "query": "secret", "vector_store_ids": [owned["{store_id}"]]}
        assert gateway.post("/internal/search", json=body).status_code == 403
