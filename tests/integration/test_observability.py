"""Every panel and alert on real parts: a tower with two engines, a node agent, load, and a real Prometheus."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from lmtower.nodes.agent import Agent, serve
from lmtower.nodes.agent_containers import Containers
from lmtower.nodes.agent_gpu import GpuReader
from lmtower.nodes.agent_memory import read_memory
from lmtower.nodes.watchdog import Policy
from lmtower.nodes.watchdog_actor import AdminApi, Watchdog
from tests.fakes.engine import FakeEngine, ToolCall
from tests.integration.observed import Prometheus, panel_queries, running_prometheus
from tests.integration.tower import Tower
from tests.nodes.fake_node import GIB, FakeNvml, FakeProc

pytestmark = [pytest.mark.tools, pytest.mark.embedded]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@pytest.fixture(scope="module")
def prometheus_program() -> str:
    """Debian's prometheus."""
    found = shutil.which("prometheus")
    if found is None:
        pytest.skip("prometheus is not installed")
    return found


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[str, FakeProc]]:
    """A node agent over a fake Spark, with a watchdog that nothing has to fear from."""
    proc = FakeProc(tmp_path / "proc")
    proc.process(100, "VLLM::EngineCor")
    watchdog = Watchdog(
        "local", Policy(12 * GIB), lambda: read_memory(proc.path), None, Containers(None), {}, lambda: 0.0
    )
    reader = GpuReader(FakeNvml(), proc=proc.path)
    agent = Agent(
        "local", lambda: read_memory(proc.path), reader.read, reserve_bytes=12 * GIB, models=tmp_path, watchdog=watchdog
    )
    server = serve(agent, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", proc
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def fake() -> Iterator[FakeEngine]:
    """A vLLM-like engine whose cache, speed and death the test decides."""
    with FakeEngine() as engine:
        engine.script(text="one two three four", delay=0.01, input_tokens=2000, cached_tokens=1500)
        call = ToolCall("weather", '{"city": "Rome"}')
        engine.script(tool_calls=[call], when=lambda request: bool(request.json.get("tools")))
        yield engine


@pytest.fixture
def tower(tmp_path: Path, node: tuple[str, FakeProc], fake: FakeEngine, ports: Callable[[], int]) -> Iterator[Tower]:
    """A tower with that engine and the embedded one."""
    made = Tower(tmp_path, ports(), {})
    made.write(
        {
            "nodes": {"local": {"agent": node[0]}},
            "engines": {
                "fake": {"url": fake.url, "model": "fake-model", "recipe": "qwen3", "slots": 4},
                "narrow": {"url": fake.url, "model": "fake-model", "slots": 1, "lanes": {"deadline": "1s"}},
                "mini": {"model": "bundled:smollm2", "node": "local", "context": 2048, "sequences": 1, "port": ports()},
            },
            "personas": {
                "plan": {
                    "engine": "fake",
                    "system": "You plan.",
                    "ttft_target": "5s",
                    "price": {"input": 1, "output": 2},
                },
                "agent": {"engine": "fake", "tools": "strict", "lane": "agent"},
                "slow": {"engine": "narrow"},
                "mini": {"engine": "mini", "lane": "batch"},
            },
            "limits": {"tokens_per_day": "100m"},
            "observability": {"cloud_price": {"input": 3, "output": 15}},
        }
    )
    made.up()
    yield made
    made.run("down", "--yes")


class Load:
    """Several clients that keep asking until they are told to stop."""

    def __init__(self, tower: Tower) -> None:
        self._tower = tower
        self._stop = threading.Event()
        keys = [tower.ok("key", "create", name).strip().splitlines()[-1] for name in ("alice", "bob")]
        self._threads = [threading.Thread(target=self._ask, args=(key,)) for key in keys]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, key: str) -> None:
        with httpx.Client(base_url=self._tower.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
            while not self._stop.wait(0.1):
                for persona, more in (
                    ("plan", {"stream": True, "user": "ann"}),
                    ("agent", {"tools": [WEATHER]}),
                    ("mini", {"max_tokens": 4}),
                ):
                    messages = [{"role": "user", "content": "hello " * 20}]
                    client.post("/v1/chat/completions", json={"model": persona, "messages": messages, **more})


def wait_for_targets(prometheus: Prometheus) -> None:
    """All four jobs answer."""
    wanted = {"lmtower", "external/fake", "external/narrow", "llamacpp/mini", "lmtower-node/local"}
    prometheus.until("targets", lambda: {n for n, health in prometheus.up().items() if health == "up"} == wanted)


def test_every_panel_query_returns_data(
    tower: Tower, tmp_path: Path, prometheus_program: str, ports: Callable[[], int]
) -> None:
    """Under load from two clients every query of the four dashboards has a number, and calm rings no bell."""
    with running_prometheus(
        prometheus_program, tmp_path / "prom", f"127.0.0.1:{tower.port + 1}", ports()
    ) as prometheus:
        wait_for_targets(prometheus)
        with Load(tower):
            queries = dict(panel_queries())
            assert len(queries) > 60
            prometheus.until("rates", lambda: prometheus.values("sum(rate(llamacpp:tokens_predicted_total[20s])) > 0"))
            empty: list[str] = []

            def all_answered() -> bool:
                empty[:] = [where for where, query in queries.items() if not prometheus.values(query)]
                return not empty

            try:
                prometheus.until("panels", all_answered, 60)
            except AssertionError as error:
                raise AssertionError({where: queries[where] for where in empty}) from error
        assert prometheus.firing() == set()
        listed = {row["request_id"] for row in tower.admin("/admin/requests?limit=500")["requests"]}
        assert prometheus.exemplars("lmtower_ttft_seconds_bucket") & listed


def test_alerts_of_the_engines_fire_on_their_fault_and_clear_after(
    tower: Tower,
    fake: FakeEngine,
    node: tuple[str, FakeProc],
    tmp_path: Path,
    prometheus_program: str,
    ports: Callable[[], int],
) -> None:
    """Full KV cache, preemptions, rejected tool calls, missed deadlines, memory, a cold cache, a death."""
    proc, file = node[1], tmp_path / "tower.yaml"
    with running_prometheus(
        prometheus_program, tmp_path / "prom", f"127.0.0.1:{tower.port + 1}", ports()
    ) as prometheus:
        wait_for_targets(prometheus)
        with Load(tower):
            warm = 'persona:lmtower_prefix_hit:ratio_rate5m{persona="plan"} offset 40s > 0.5'
            prometheus.until("a warm hour", lambda: prometheus.values(warm), 120)
            good = file.read_text()
            file.write_text(good.replace("You plan.", "You plan anew."))
            tower.ok("reload")
            fake.clear()
            bad = [ToolCall("no_such_tool", '{"city": ')]
            fake.script(text="one two three four", delay=0.01, input_tokens=2000, cached_tokens=0)
            fake.script(tool_calls=bad, when=lambda request: bool(request.json.get("tools")))
            fake.script(text="slow", first_delay=4, when=lambda request: "slow" in request.raw.decode())
            fake.kv_cache_usage, fake.preemptions = 0.99, 50
            proc.set(available=6 * GIB, stalled=0.4)
            wanted = {
                "KvCacheFull", "Preemptions", "PrefixHitRateHalved", "ToolCallsRejected", "MemoryUnderReserve",
                "MemoryPressure", "QueueDeadlineMissed",
            }  # fmt: skip

            def all_seen() -> bool:
                with ThreadPoolExecutor(2) as pool:  # one slot: the second waits longer than the lane's deadline
                    list(pool.map(lambda _: tower.chat("slow", "slow"), "ab"))
                seen.update(prometheus.firing())
                return wanted <= seen

            seen: set[str] = set()
            try:
                prometheus.until("alerts", all_seen, 150)
            except AssertionError as error:
                raise AssertionError(wanted - seen) from error
            assert "EngineDown" not in seen
            fake.crash()
            prometheus.until("the death", lambda: "EngineDown" in prometheus.firing(), 90)
            fake.restart()
            fake.clear()
            fake.script(text="one two three four", delay=0.01, input_tokens=2000, cached_tokens=1500)
            fake.kv_cache_usage = 0.1
            proc.set(available=60 * GIB)
            prometheus.until("calm", lambda: not prometheus.firing(), 150)


def test_alerts_of_the_tower_fire_on_their_fault_and_clear_after(
    tower: Tower, tmp_path: Path, prometheus_program: str, ports: Callable[[], int]
) -> None:
    """Budgets near and spent, a late event loop, a database that is locked, a wrong tower file."""
    keys = {
        name: tower.ok("key", "create", name, "--tokens-per-day", limit).strip().splitlines()[-1]
        for name, limit in (("near", "2400"), ("spent", "2000"))
    }
    pid = json.loads((tower.folder / "data/tower.json").read_text())["pid"]
    with running_prometheus(
        prometheus_program, tmp_path / "prom", f"127.0.0.1:{tower.port + 1}", ports()
    ) as prometheus:
        wait_for_targets(prometheus)
        for key in keys.values():
            tower.until("the key", lambda key=key: _ask(tower, key).status_code == 200, 20)
        wanted = {"BudgetNearlySpent", "BudgetSpent"}
        prometheus.until("budgets", lambda: wanted <= prometheus.firing(), 60)
        refused = _ask(tower, keys["spent"])
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "insufficient_quota")
        with _stuttering(pid):
            prometheus.until("lag", lambda: "EventLoopLag" in prometheus.firing(), 60)
        for name in keys:
            tower.ok("key", "update", name, "--tokens-per-day", "1m")
        good = (tmp_path / "tower.yaml").read_text()
        (tmp_path / "tower.yaml").write_text(good.replace("qwen3", "no-such-recipe"))
        tower.run("reload")
        with closing(sqlite3.connect(tower.folder / "data/ledger.db", isolation_level=None)) as locked:
            locked.execute("BEGIN EXCLUSIVE")
            assert tower.chat("plan")[0] == 200
            wanted = {"JournalLag", "ReloadFailed"}
            prometheus.until("the database", lambda: wanted <= prometheus.firing(), 150)
        (tmp_path / "tower.yaml").write_text(good)
        tower.ok("reload")
        prometheus.until("calm", lambda: not prometheus.firing(), 120)


def test_certificate_that_ends_soon_rings_until_it_is_renewed(
    tmp_path: Path, fake: FakeEngine, prometheus_program: str, ports: Callable[[], int]
) -> None:
    """Five days are too few; the renewed file is seen without a restart."""
    made = Tower(tmp_path, ports(), {})
    made.key = "not used"
    tls = {"cert": str(tmp_path / "cert.pem"), "key": str(tmp_path / "key.pem")}
    _certificate(tls, 5)
    gateway = {"listen": f"127.0.0.1:{made.port}", "admin": f"127.0.0.1:{made.port + 1}", "tls": tls}
    engines = {"fake": {"url": fake.url, "model": "fake-model"}}
    made.write({"gateway": gateway, "engines": engines, "personas": {"plan": {"engine": "fake"}}})
    try:
        made.up()
        with running_prometheus(
            prometheus_program, tmp_path / "prom", f"127.0.0.1:{made.port + 1}", ports()
        ) as prometheus:
            prometheus.until("the bell", lambda: "CertificateExpires" in prometheus.firing(), 60)
            _certificate(tls, 90)
            prometheus.until("calm", lambda: prometheus.up() and not prometheus.firing(), 60)
    finally:
        made.run("down", "--yes")


def _ask(tower: Tower, key: str) -> httpx.Response:
    body = {"model": "plan", "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{tower.url}/v1/chat/completions", json=body, headers=headers, timeout=60, trust_env=False)


@contextmanager
def _stuttering(pid: int) -> Iterator[None]:
    """The process is stopped for half a second, again and again: so its event loop is late."""
    end = threading.Event()

    def stutter() -> None:
        while not end.is_set():
            os.kill(pid, signal.SIGSTOP)
            end.wait(0.5)
            os.kill(pid, signal.SIGCONT)
            end.wait(0.3)

    thread = threading.Thread(target=stutter)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        os.kill(pid, signal.SIGCONT)


def _certificate(tls: Mapping[str, str], days: int) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", str(days), "-subj", "/CN=tower"]
    subprocess.run([*command, "-keyout", tls["key"], "-out", tls["cert"]], check=True, capture_output=True)


def test_watchdog_holds_lanes_and_stops_the_engine_of_its_node(tower: Tower, node: tuple[str, FakeProc]) -> None:
    """Over the real admin API: batch work is refused, then the engine is stopped; other nodes' engines go on."""
    proc = node[1]
    key = (tower.folder / "data/admin.key").read_text().strip()
    admin = AdminApi(f"http://127.0.0.1:{tower.port + 1}", key)
    moments = iter(range(1000))
    watchdog = Watchdog(
        "local",
        Policy(12 * GIB),
        lambda: read_memory(proc.path),
        admin,
        Containers(None),
        {"mini": 7},
        lambda: float(next(moments)),
    )
    assert tower.chat("mini")[0] == 200
    proc.set(available=11 * GIB)
    watchdog.step()
    status, answer = tower.chat("mini")
    assert (status, answer["error"]["code"]) == (503, "lane_held")
    proc.set(available=2 * GIB)
    watchdog.step()
    engines = {each["name"]: each for each in tower.admin("/admin/status")["engines"]}
    assert engines["mini"]["held"] == ["batch", "default"]
    tower.until("stop", lambda: tower.admin("/admin/status")["engines"][2]["state"] != "ready")
    assert tower.chat("plan")[0] == 200
    assert watchdog.reading.actions["stop"] == 1
