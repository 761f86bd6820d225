"""``lmtower console`` over a real tower with its real store service, the embedded engine and a real Prometheus."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.observed import running_prometheus
from tests.integration.tower import Tower

pytestmark = [pytest.mark.tools, pytest.mark.embedded]
HANDBOOK = "# Leave\n\nEvery employee has 30 days of leave in a year.\n\n# Travel\n\nTrains are booked by the office.\n"


@pytest.fixture
def tower(tmp_path: Path, ports: Callable[[], int]) -> Iterator[tuple[Tower, int]]:
    """A small model, embeddings, stores, and a Prometheus that is to be at the second value."""
    made, prometheus_port = Tower(tmp_path, ports(), {}), ports()
    made.write(
        {
            "engines": {
                "mini": {"model": "bundled:smollm2", "context": 2048, "sequences": 2, "port": ports()},
                "words": {"model": "bundled:wordllama", "port": ports()},
            },
            "personas": {"mini": {"engine": "mini"}, "search": {"engine": "words"}},
            "stores": {"listen": f"127.0.0.1:{ports()}", "document_persona": "search", "query_persona": "search"},
            "observability": {"prometheus": f"http://127.0.0.1:{prometheus_port}"},
        }
    )
    made.up()
    yield made, prometheus_port
    made.run("down", "--yes")


@pytest.fixture
def console(tower: tuple[Tower, int], ports: Callable[[], int]) -> Iterator[httpx.Client]:
    """Logged in, as a browser would be."""
    folder, port = tower[0].folder, ports()
    where = ["-c", str(folder / "tower.yaml"), "--data-dir", str(folder / "data"), "--listen", f"127.0.0.1:{port}"]
    process = subprocess.Popen([sys.executable, "-m", "lmtower", "console", *where], stdout=subprocess.PIPE, text=True)
    try:
        base = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=base, headers={"origin": base}, timeout=60, trust_env=False) as web:
            _until(lambda: _answers(web), 60)
            key = (folder / "data/admin.key").read_text().strip()
            assert web.post("/login", data={"key": key}).status_code == 303
            yield web
    finally:
        process.terminate()
        process.communicate(timeout=30)


def _answers(web: httpx.Client) -> bool:
    try:
        return web.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def _until(true: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)  # other processes tell nobody


def test_stores_page_shows_what_the_store_service_has(tower: tuple[Tower, int], console: httpx.Client) -> None:
    """Files with their status and reason, and a search whose hit says where it stands."""
    made = tower[0]
    (made.folder / "leave.md").write_text(HANDBOOK)
    (made.folder / "noise.bin").write_bytes(bytes(range(256)) * 8)
    made.until("the store service", lambda: made.run("store", "create", "handbook").returncode == 0)
    made.run("store", "add", "handbook", str(made.folder / "leave.md"), str(made.folder / "noise.bin"), timeout=60)
    listing = console.get("/stores").text
    path = re.search(r'href="(/stores/vs_\w+)">handbook', listing)
    assert path is not None
    page = console.get(path[1], params={"q": "How many days of leave?"}).text
    for wanted in ("leave.md", "completed", "30 days of leave", "Leave", "meaning"):
        assert wanted in page, wanted
    assert "failed" in console.get(path[1], params={"status": "failed"}).text
    kinds = console.get("/personas").text
    assert ('<span class="chip">embedding</span>' in kinds, '<span class="chip">chat</span>' in kinds) == (True, True)


def test_history_is_drawn_from_the_tower_files_prometheus(
    tower: tuple[Tower, int], console: httpx.Client, tmp_path: Path
) -> None:
    """An hour of charts from a real Prometheus, with what was asked in it; memory of this machine is observed."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    made, port = tower
    with running_prometheus(program, tmp_path / "prom", f"127.0.0.1:{made.port + 1}", port) as prometheus:
        assert made.chat("mini")[0] == 200
        prometheus.until("scrape", lambda: prometheus.values("sum(lmtower_requests_total)"))
        assert made.chat("mini")[0] == 200
        prometheus.until("rate", lambda: prometheus.values("sum(rate(lmtower_requests_total[1m])) > 0"))

        def drawn() -> bool:
            page = console.get("/?range=1h").text
            assert "does not answer" not in page
            return re.search(r'aria-label="Requests per minute: requests [0-9.]*[1-9]', page) is not None

        _until(drawn, 60)
    engines = console.get("/engines").text
    assert re.search(r"Observed memory of local: [\d.]+ GiB in use", engines)
    assert "Restart mini" in engines
    assert (
        "ready" in console.get("/engines/mini/log").text.lower() or console.get("/engines/mini/log").status_code == 200
    )
