"""Vector stores through the gateway: the SDK's helpers with a client's key, and answers with citations."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from lmtower.ledger import Ledger
from tests.fakes.engine import FakeEngine
from tests.integration.test_survival import free_port

ANSWER = "You have 30 days of leave [1]."


@pytest.fixture
def tower(tmp_path: Path) -> Iterator[tuple[FakeEngine, str, str, str]]:
    """``lmtower serve`` with its store service; (engine, base URL, key of ada, key of eve)."""
    port = free_port()
    with FakeEngine("m") as engine:
        engine.script(text=ANSWER)
        file = tmp_path / "tower.yaml"
        file.write_text(
            f"""
gateway: {{listen: "127.0.0.1:{port}", admin: "127.0.0.1:{free_port()}"}}
stores: {{listen: "127.0.0.1:{free_port()}"}}
engines: {{big: {{model: m, url: "{engine.url}"}}}}
personas:
  plan: {{engine: big, system: Plan.}}
  embed-document: {{engine: big, prefix: "search_document: ", lane: batch}}
  embed-query: {{engine: big, prefix: "search_query: "}}
"""
        )
        ledger = Ledger.open(tmp_path / "data")
        ada, eve = ledger.create_key("ada").secret, ledger.create_key("eve").secret
        command = [sys.executable, "-m", "lmtower", "serve", "-c", str(file), "--data-dir", str(tmp_path / "data")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            base = f"http://127.0.0.1:{port}/v1"
            _until_stores_answer(base, ada)
            yield engine, base, ada, eve
        finally:
            process.terminate()
            assert process.wait(30) == 0
            if process.stdout is not None:
                process.stdout.close()


def _until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _until_stores_answer(base: str, key: str) -> None:
    _until(lambda: httpx.get(f"{base}/vector_stores", headers={"authorization": f"Bearer {key}"}).status_code == 200)


def test_documents_are_searched_and_cited_for_their_owner_alone(tower: tuple[FakeEngine, str, str, str]) -> None:
    """Upload, poll, search and file_search with the OpenAI SDK; another client sees nothing of it."""
    engine, base, ada_key, eve_key = tower
    with OpenAI(base_url=base, api_key=ada_key, max_retries=0) as ada, OpenAI(base_url=base, api_key=eve_key) as eve:
        store = ada.vector_stores.create(name="handbook")
        text = b"# Leave\n\nEvery employee has 30 days of leave in a year.\n"
        file = ada.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("leave.md", text))
        assert file.status == "completed"
        hits = ada.vector_stores.search(store.id, query="days of leave").data
        assert (hits[0].filename, "30 days" in hits[0].content[0].text) == ("leave.md", True)
        assert ada.files.content(file.id).content == text
        assert list(eve.vector_stores.list()) == []
        assert (
            httpx.get(f"{base}/vector_stores/{store.id}", headers={"authorization": f"Bearer {eve_key}"}).status_code
            == 404
        )

        tool = {"type": "file_search", "vector_store_ids": [store.id]}
        question = [{"role": "user", "content": "How many days of leave?"}]
        chat = httpx.post(
            f"{base}/chat/completions",
            headers={"authorization": f"Bearer {ada_key}"},
            json={"model": "plan", "messages": question, "tools": [tool]},
            timeout=60,
        ).json()
        sent = engine.requests[-1].json
        response = ada.responses.create(model="plan", input="How many days of leave?", tools=[tool])
    assert "tools" not in sent
    assert sent["messages"][0] == {"role": "system", "content": "Plan."}
    assert sent["messages"][1]["content"].startswith("How many days of leave?\n\n")
    assert "30 days of leave in a year" in sent["messages"][1]["content"]
    annotation = chat["choices"][0]["message"]["annotations"][0]["url_citation"]
    assert (annotation["title"], annotation["url"]) == ("leave.md", f"/v1/files/{file.id}/content")
    assert response.output[0].type == "file_search_call"
    assert response.output_text == ANSWER
    message = json.loads(response.output[-1].model_dump_json())
    assert message["content"][0]["annotations"][0]["filename"] == "leave.md"


def test_embedding_is_booked_on_the_client_that_owns_the_store(
    tower: tuple[FakeEngine, str, str, str], tmp_path: Path
) -> None:
    """Documents and questions count for ada, documents in the batch lane; nobody can book work on another."""
    engine, base, ada_key, eve_key = tower
    with OpenAI(base_url=base, api_key=ada_key, max_retries=0) as ada:
        store = ada.vector_stores.create(name="handbook")
        ada.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=("leave.md", b"30 days of leave."))
        assert ada.vector_stores.search(store.id, query="days of leave").data
    forged = {"x-lmtower-on-behalf-of": "ada", "x-lmtower-internal": "guessed", "x-lmtower-lane": "interactive"}
    headers = {"authorization": f"Bearer {eve_key}", **forged}
    body = {"model": "embed-document", "input": "mine"}
    assert httpx.post(f"{base}/embeddings", headers=headers, json=body).status_code == 200
    assert not any("lmtower" in name.lower() for name in engine.requests[-1].headers)
    ledger = Ledger.open(tmp_path / "data")
    rows = ledger.usage(("client", "persona", "lane")).rows
    ledger.shut()
    used = {tuple(row.group[key] for key in ("client", "persona", "lane")): row.requests for row in rows}
    # the probe, which asks which model it is, is the tower's own
    assert used == {
        ("ada", "embed-document", "batch"): 1,
        ("ada", "embed-query", "default"): 1,
        ("eve", "embed-document", "batch"): 1,
        ("stores", "embed-document", "batch"): 1,
    }


def test_a_store_service_that_dies_is_started_again(tower: tuple[FakeEngine, str, str, str], tmp_path: Path) -> None:
    """While it is away clients are told so, with a time; the tower starts it again and nothing is lost."""
    _, base, ada_key, _ = tower
    with OpenAI(base_url=base, api_key=ada_key, max_retries=0) as ada:
        store = ada.vector_stores.create(name="handbook")
    tower_pid = json.loads((tmp_path / "data" / "tower.json").read_text())["pid"]
    children = Path(f"/proc/{tower_pid}/task/{tower_pid}/children").read_text().split()
    services = [int(pid) for pid in children if b"lmtower.stores.server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(services[0], signal.SIGKILL)
    _until(
        lambda: httpx.get(f"{base}/vector_stores", headers={"authorization": f"Bearer {ada_key}"}).status_code == 503
    )
    away = httpx.get(f"{base}/vector_stores", headers={"authorization": f"Bearer {ada_key}"})
    assert (away.status_code, away.json()["error"]["code"]) == (503, "stores_unavailable")
    assert int(away.headers["retry-after"]) > 0
    _until_stores_answer(base, ada_key)
    with OpenAI(base_url=base, api_key=ada_key, max_retries=0) as ada:
        assert [one.id for one in ada.vector_stores.list()] == [store.id]
