"""Reload: a snapshot is swapped under load, nothing is dropped, nothing is mixed; a bad file changes nothing."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from lmtower.config import load
from lmtower.config.types import Tls
from lmtower.errors import ConfigError, NodeError
from lmtower.gateway import Configuration, app
from lmtower.gateway.certificate import context_of
from lmtower.gateway.snapshot import Snapshot
from tests.fakes.engine import FakeEngine
from tests.gateway.support import Running, make_certificate, running, until, upstream

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
    return Configuration(loaded.tower, [upstream(engine, slots=400)], loaded.watched_files if watched else {})


@asynccontextmanager
async def reloadable(folder: Path, engine: FakeEngine, path: Path) -> AsyncIterator[Running]:
    """A gateway that reads the file again when it is told to."""
    start = configuration(path, engine)
    upstreams = list(start.upstreams)
    configure = partial(configuration, path, engine)
    async with running(folder, engine, tower=start.tower, upstreams=upstreams, configure=configure) as tower:
        yield tower


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
        async with reloadable(tmp_path, engine, path) as tower:
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
                assert (await tower.operator.post("/admin/reload")).json()["version"] == mark
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


async def test_old_snapshot_is_free_when_nobody_uses_it(tmp_path: Path) -> None:
    """Not held by the heads of clients that came once, however many they are."""
    with FakeEngine("served") as engine:
        path = tower_file(tmp_path, engine, 1)
        async with reloadable(tmp_path, engine, path) as tower:
            assert await many(tower, 2) == [200, 200]
            await until(lambda: not tower.gateway.server.connections)
            old = tower.gateway.snapshot.tower
            tower_file(tmp_path, engine, 2)
            assert (await tower.operator.post("/admin/reload")).status_code == 200
            gc.collect()
            assert not [one for one in gc.get_objects() if type(one) is Snapshot and one.tower is old]


async def test_bad_file_keeps_the_old_snapshot_and_says_why(tmp_path: Path) -> None:
    """A mistake in the file is told by the reload, in the status and as a metric, and the old prompt still serves."""
    with FakeEngine("served") as engine:
        path = tower_file(tmp_path, engine, 1)
        async with reloadable(tmp_path, engine, path) as tower:
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


@pytest.fixture
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway looks at its files all the time instead of once a second."""
    monkeypatch.setattr(app, "WATCH_SECONDS", 0.01)


@asynccontextmanager
async def watching(tmp_path: Path, engine: FakeEngine, path: Path) -> AsyncIterator[Running]:
    """A gateway that watches its files."""
    tower = load(path).tower
    parts: dict[str, Any] = {"tower": tower, "configure": lambda: configuration(path, engine, watched=True)}
    async with running(tmp_path, engine, upstreams=[upstream(engine, slots=400)], **parts) as found:
        found.gateway.reload()  # learns which files to watch
        yield found


async def prompt(tower: Running) -> str:
    """The system prompt that the engine is sent now."""
    await tower.chat()
    return str(tower.engine.to("/chat/completions")[-1].json["messages"][0]["content"])


@pytest.mark.usefixtures("looks_often")
async def test_changed_file_is_noticed_without_being_asked(tmp_path: Path) -> None:
    """Saving the tower file is enough."""
    with FakeEngine("served") as engine:
        async with watching(tmp_path, engine, tower_file(tmp_path, engine, 1)) as tower:
            tower_file(tmp_path, engine, 7)
            await until(lambda: tower.gateway.snapshot.version == 3)
            assert await prompt(tower) == "mark 7"


@pytest.mark.usefixtures("looks_often")
async def test_file_that_was_missing_is_noticed_when_it_comes(tmp_path: Path) -> None:
    """The tower file already names a prompt that is written only then: nobody has to touch the tower file again."""
    with FakeEngine("served") as engine:
        path = tower_file(tmp_path, engine, 1)
        async with watching(tmp_path, engine, path) as tower:
            path.write_text(path.read_text().replace('"mark 1"', "file:later.md"))
            await until(lambda: tower.gateway.reload_error)
            (tmp_path / "later.md").write_text("later")
            await until(lambda: tower.gateway.reload_error is None)
            assert await prompt(tower) == "later"


@pytest.mark.usefixtures("looks_often")
async def test_change_while_the_file_is_read_is_not_lost(tmp_path: Path) -> None:
    """What was loaded is older than what is on disk when the gateway begins to look: it is loaded again."""
    with FakeEngine("served") as engine:
        path = tower_file(tmp_path, engine, 1)

        def slowly() -> Configuration:
            found = configuration(path, engine, watched=True)
            if found.tower.personas["plan"].system == "mark 1":
                tower_file(tmp_path, engine, 2)
            return found

        start: dict[str, Any] = {"tower": load(path).tower, "upstreams": [upstream(engine, slots=400)]}
        async with running(tmp_path, engine, configure=slowly, **start) as tower:
            tower.gateway.reload()
            await until(lambda: tower.gateway.snapshot.version == 3)
            assert await prompt(tower) == "mark 2"


async def test_keys_that_need_a_restart_are_named(tmp_path: Path) -> None:
    """The address to listen on stays as it was: the reload, the status and the log say so."""
    with FakeEngine("served") as engine:
        path = tower_file(tmp_path, engine, 1)
        async with watching(tmp_path, engine, path) as tower:
            before = (await tower.operator.get("/admin/status")).json()
            path.write_text(path.read_text().replace('listen: "127.0.0.1:0"', 'listen: "127.0.0.1:9"'))
            answer = (await tower.operator.post("/admin/reload")).json()
            after = (await tower.operator.get("/admin/status")).json()
    assert before["snapshot"]["restart"] == []
    assert answer["restart"] == after["snapshot"]["restart"] == ["gateway.listen"]
    assert after["gateway"]["listen"] == "127.0.0.1:0"


async def shown(port: int) -> tuple[str, str | None]:
    """Name on the certificate that a client sees, and the protocol that was agreed on."""
    context = ssl.create_default_context(cadata=None)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    found = writer.get_extra_info("ssl_object")
    der, protocol = found.getpeercert(binary_form=True), found.selected_alpn_protocol()
    writer.close()
    return re.findall(rb"tower-(?:old|new)", der)[-1].decode(), protocol


@pytest.mark.usefixtures("looks_often")
async def test_renewed_certificate_is_shown_to_the_next_client(tmp_path: Path) -> None:
    """Saving the files is enough; a key of another certificate changes nothing and is told."""
    make_certificate(tmp_path, "tower-old")
    with FakeEngine("served") as engine:
        path = tower_file(tmp_path, engine, 1)
        path.write_text(path.read_text().replace("gateway: {", "gateway: {tls: {cert: c.pem, key: k.pem}, "))
        async with watching(tmp_path, engine, path) as tower:
            assert await shown(tower.port) == ("tower-old", "http/1.1")
            other = tmp_path / "other"
            other.mkdir()
            make_certificate(other, "tower-new")
            (other / "c.pem").replace(tmp_path / "c.pem")
            await until(lambda: tower.gateway.reload_error)
            assert "does not belong to the certificate" in str(tower.gateway.reload_error)
            assert await shown(tower.port) == ("tower-old", "http/1.1")
            (other / "k.pem").replace(tmp_path / "k.pem")
            await until(lambda: tower.gateway.reload_error is None)
            assert await shown(tower.port) == ("tower-new", "http/1.1")


@pytest.mark.parametrize(
    ("cert", "key", "words"),
    [
        ("none.pem", "k.pem", r"tls.cert: cannot read .*none.pem: no such file"),
        ("c.pem", "none.pem", r"tls.key: cannot read .*none.pem: no such file"),
        ("k.pem", "c.pem", r"k.pem and .*c.pem must be a certificate chain and its key in PEM"),
        ("c.pem", "locked.pem", r"not encrypted"),
    ],
)
def test_wrong_certificate_is_told_with_its_file(tmp_path: Path, cert: str, key: str, words: str) -> None:
    """Which file, and what is wrong with it; an encrypted key does not ask a terminal that nobody looks at."""
    make_certificate(tmp_path, "tower-x")
    lock = [
        "openssl",
        "rsa",
        "-aes128",
        "-passout",
        "pass:1234",
        "-in",
        tmp_path / "k.pem",
        "-out",
        tmp_path / "locked.pem",
    ]
    subprocess.run(lock, capture_output=True, check=True)
    with pytest.raises(NodeError, match=words):
        context_of(Tls(cert=str(tmp_path / cert), key=str(tmp_path / key)))


async def test_engine_that_did_not_change_keeps_its_connections(tmp_path: Path) -> None:
    """A reload that only touches personas leaves the engine's pool, health and queue alone."""
    with FakeEngine("served") as engine:
        path = tower_file(tmp_path, engine, 1)
        async with reloadable(tmp_path, engine, path) as tower:
            before = tower.gateway.snapshot.engines["big"]
            tower_file(tmp_path, engine, 2)
            tower.gateway.reload()
            assert tower.gateway.snapshot.engines["big"] is before
