"""Reload: a snapshot is swapped under load, nothing is dropped, nothing is mixed; a bad file changes nothing."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import httpx
import pytest

from lmtower.config import load
from lmtower.errors import ConfigError
from lmtower.gateway import Configuration
from tests.fakes.engine import FakeEngine
from tests.gateway.support import Running, running, until, upstream

REQUESTS = 10_000
CONNECTIONS = 16
STREAMS = 100
RELOADS = 100


def tower_file(folder: Path, engine: FakeEngine, mark: int, extra: str = "") -> Path:
    """A tower file whose persona says ``mark`` in its prompt and in its temperature: they must never be mixed."""
    path = folder / "tower.yaml"
    path.write_text(
        f"""
gateway: {{listen: "127.0.0.1:0", admin: "127.0.0.1:0"}}
engines:
  big: {{model: {engine.models[0]}, url: "{engine.url}"}}
personas:
  plan: {{engine: big, system: "mark {mark}", temperature: {mark / 1000}}}
{extra}"""
    )
    return path


def configuration(path: Path, engine: FakeEngine, *, watched: bool = False) -> Configuration:
    """The file as the CLI hands it over; ``watched``: the gateway may also notice changes by itself."""
    loaded = load(path)
    return Configuration(loaded.tower, [upstream(engine, slots=400)], loaded.watched_files if watched else ())


async def many(tower: Running, count: int) -> list[int]:
    """Statuses of ``count`` requests on one kept connection, on a bare socket."""
    body = json.dumps({"model": "plan", "messages": [{"role": "user", "content": "x"}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {tower.key}\r\n".encode()
    request = head + b"content-length: %d\r\n\r\n" % len(body) + body
    reader, writer = await asyncio.open_connection("127.0.0.1", tower.port)
    statuses = []
    for _ in range(count):
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", answer)
        assert length is not None
        await reader.readexactly(int(length[1]))
        statuses.append(int(answer[9:12]))
    writer.close()
    return statuses


async def test_hundred_reloads_under_load_drop_and_mix_nothing(tmp_path: Path) -> None:
    """10,000 requests and 100 open streams while the file is reloaded 100 times: all succeed, each on one snapshot."""
    with FakeEngine("served") as engine:
        path = tower_file(tmp_path, engine, 1)
        start = configuration(path, engine)
        async with running(
            tmp_path,
            engine,
            tower=start.tower,
            upstreams=list(start.upstreams),
            configure=lambda: configuration(path, engine),
        ) as tower:
            gate = engine.gate()
            engine.script(when=lambda r: r.json.get("stream") is True, gate=gate, gate_after=1)
            limits = httpx.Limits(max_connections=STREAMS)
            tower.client = httpx.AsyncClient(
                base_url=tower.base, headers=tower.client.headers, timeout=60, limits=limits
            )
            streams = [asyncio.create_task(tower.chat(stream=True)) for _ in range(STREAMS)]
            await until(lambda: engine.running == STREAMS, 30)
            load_tasks = [asyncio.create_task(many(tower, REQUESTS // CONNECTIONS)) for _ in range(CONNECTIONS)]
            for mark in range(2, RELOADS + 2):
                tower_file(tmp_path, engine, mark)
                assert (await tower.operator.post("/admin/reload")).json() == {"version": mark}
            statuses = [status for task in load_tasks for status in await task]
            gate.open()
            answers = [await task for task in streams]
        assert statuses == [200] * REQUESTS
        assert all(a.status_code == 200 and a.text.endswith("data: [DONE]\n\n") for a in answers)
        bodies = [r.json for r in engine.requests if r.path.endswith("completions")]
    assert len(bodies) == REQUESTS + STREAMS
    for body in bodies:
        mark = int(body["messages"][0]["content"].removeprefix("mark "))
        assert body["temperature"] == mark / 1000


async def test_bad_file_keeps_the_old_snapshot_and_says_why(tmp_path: Path) -> None:
    """A mistake in the file is told by the reload, in the status and as a metric, and the old prompt still serves."""
    with FakeEngine("served") as engine:
        path = tower_file(tmp_path, engine, 1)
        start = configuration(path, engine)
        async with running(
            tmp_path,
            engine,
            tower=start.tower,
            upstreams=list(start.upstreams),
            configure=lambda: configuration(path, engine),
        ) as tower:
            tower_file(tmp_path, engine, 2, extra="personnas: {}\n")
            with pytest.raises(ConfigError, match="Did you mean 'personas'"):
                tower.gateway.reload()
            refused = await tower.operator.post("/admin/reload")
            status = (await tower.operator.get("/admin/status")).json()
            metrics = (await tower.operator.get("/metrics")).text
            assert (await tower.chat()).status_code == 200
    assert refused.status_code == 400
    assert "personnas" in refused.json()["error"]["message"]
    assert status["snapshot"]["version"] == 1
    assert "Did you mean 'personas'" in status["snapshot"]["error"]
    assert 'lmtower_config_reloads_total{result="failed"} 2' in metrics
    assert engine.requests[-1].json["messages"][0]["content"] == "mark 1"


async def test_changed_file_is_noticed_without_being_asked(tmp_path: Path) -> None:
    """Saving the tower file is enough."""
    with FakeEngine("served") as engine:
        path = tower_file(tmp_path, engine, 1)
        start = configuration(path, engine, watched=True)
        async with running(
            tmp_path,
            engine,
            tower=start.tower,
            upstreams=list(start.upstreams),
            configure=lambda: configuration(path, engine, watched=True),
        ) as tower:
            tower.gateway.reload()  # learns which files to watch
            tower_file(tmp_path, engine, 7)
            await until(lambda: tower.gateway.snapshot.version == 3)
            await tower.chat()
    assert engine.requests[-1].json["messages"][0]["content"] == "mark 7"


async def test_engine_that_did_not_change_keeps_its_connections(tmp_path: Path) -> None:
    """A reload that only touches personas leaves the engine's pool, health and queue alone."""
    with FakeEngine("served") as engine:
        path = tower_file(tmp_path, engine, 1)
        start = configuration(path, engine)
        async with running(
            tmp_path,
            engine,
            tower=start.tower,
            upstreams=list(start.upstreams),
            configure=lambda: configuration(path, engine),
        ) as tower:
            before = tower.gateway.snapshot.engines["big"]
            tower_file(tmp_path, engine, 2)
            tower.gateway.reload()
            assert tower.gateway.snapshot.engines["big"] is before
