"""A store service on a free port, in this process, over a gateway that only embeds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from openai import OpenAI

from lmtower.stores.access import OPERATOR
from lmtower.stores.app import application
from lmtower.stores.extract import Limits
from lmtower.stores.launch import Personas
from lmtower.stores.service import Service, Settings, build
from tests.stores.embedding import EmbeddingGateway

SECRET = "the-secret-of-this-tower"


@dataclass
class Running:
    """A service that listens. ``clock`` is added to its time."""

    url: str
    service: Service
    gateway: EmbeddingGateway
    clock: list[float]

    def headers(self, client: str, name: str = "") -> dict[str, str]:
        return {"x-lmtower-internal": SECRET, "x-lmtower-client": client, "x-lmtower-client-name": name}

    def openai(self, client: str = "ada", name: str = "") -> OpenAI:
        return OpenAI(
            base_url=f"{self.url}/v1", api_key="unused", default_headers=self.headers(client, name), max_retries=0
        )

    def http(self, client: str = OPERATOR, name: str = "") -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers(client, name), timeout=60)

    def wait(self, store_id: str, client: str = OPERATOR, seconds: float = 60) -> dict[str, Any]:
        """The store, once nothing in it is in progress."""
        deadline = time.monotonic() + seconds
        with self.http(client) as http:
            while True:
                store: dict[str, Any] = http.get(f"/v1/vector_stores/{store_id}").raise_for_status().json()
                if store["status"] != "in_progress":
                    return store
                assert time.monotonic() < deadline, store
                time.sleep(0.05)

    def put(self, texts: dict[str, str], client: str = "ada", **store: Any) -> Any:
        """A store with these files, ready."""
        openai = self.openai(client)
        made = openai.vector_stores.create(name="store", extra_body=store)
        files = [(name, text.encode()) for name, text in texts.items()]
        batch = openai.vector_stores.file_batches.upload_and_poll(made.id, files=files, poll_interval_ms=50)
        assert batch.file_counts.completed == len(texts), openai.vector_stores.files.list(made.id).data
        openai.close()
        return made


def settings(folder: Path, gateway: str) -> Settings:
    return Settings(
        folder=folder,
        database=f"sqlite:///{folder / 'catalogue.db'}",
        uri=str(folder / "vectors"),
        gateway=gateway,
        key="internal",
        secret=SECRET,
        personas=Personas("embed-document", "embed-query", None, "test/model"),
        max_file_bytes=1024**2,
        limits=Limits(pages=20, seconds=20, memory_bytes=1024**3, characters=2_000_000),
    )


@pytest.fixture
def gateway() -> Iterator[EmbeddingGateway]:
    gateway = EmbeddingGateway()
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture
def launch(tmp_path: Path, gateway: EmbeddingGateway) -> Iterator[Callable[..., Running]]:
    """Start a service; ``changes`` are settings that differ. Stopped at the end of the test."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(**changes: Any) -> Running:
        clock = [0.0]
        chosen = replace(settings(tmp_path / "stores", gateway.url), **changes)
        service = build(chosen, lambda: time.time() + clock[0])
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(application(service), log_level="error", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running.append((server, thread))
        return Running(f"http://127.0.0.1:{listener.getsockname()[1]}", service, gateway, clock)

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture
def running(launch: Callable[..., Running]) -> Running:
    return launch()
