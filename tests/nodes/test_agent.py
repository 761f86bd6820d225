"""The agent over HTTP, and its loop."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtower.errors import NodeError
from lmtower.nodes.agent import Agent, serve
from lmtower.nodes.agent_containers import Containers
from lmtower.nodes.agent_gpu import Gpu, GpuProcess, GpuReader, Gpus
from lmtower.nodes.agent_memory import read_memory
from lmtower.nodes.watchdog import Policy
from lmtower.nodes.watchdog_actor import AdminApi, Watchdog
from tests.nodes.fake_node import GIB, FakeNvml, FakeProc


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    """A fake /proc."""
    return FakeProc(tmp_path / "proc")


@pytest.fixture
def address(proc: FakeProc, tmp_path: Path) -> Iterator[str]:
    """A served agent of the fake node."""
    reader = GpuReader(FakeNvml(), proc=proc.path)
    agent = Agent("spark", lambda: read_memory(proc.path), reader.read, reserve_bytes=12 * GIB, models=tmp_path)
    server = serve(agent, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def get(url: str) -> tuple[str, str]:
    """Content type and text."""
    with urllib.request.urlopen(url, timeout=5) as reply:
        return reply.headers["Content-Type"], reply.read().decode()


def test_metrics_are_served(address: str) -> None:
    """Prometheus finds the page where it expects it, free disk space included."""
    kind, page = get(address + "/metrics")
    assert kind.startswith("text/plain; version=0.0.4")
    assert "lmtower_node_gpu_power_watts" in page
    assert "lmtower_node_disk_free_bytes" in page


def test_facts_are_served(address: str) -> None:
    """The tower asks here what the node has."""
    kind, text = get(address + "/facts")
    assert kind == "application/json"
    assert json.loads(text)["memory_total_bytes"] == 120 * GIB


def test_health_is_served(address: str) -> None:
    """For systemd and Kubernetes."""
    assert json.loads(get(address + "/healthz")[1]) == {"status": "ok"}


def test_unknown_path_is_json_404(address: str) -> None:
    """Even a wrong path gets a useful answer."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(address + "/nothing")
    assert (caught.value.code, "error" in json.loads(caught.value.read())) == (404, True)
    caught.value.close()


def test_taken_port_is_told(address: str, proc: FakeProc) -> None:
    """The message names the address."""
    port = int(address.rpartition(":")[2])
    with pytest.raises(NodeError, match=f"127.0.0.1:{port}"):
        serve(Agent("spark", lambda: read_memory(proc.path)), "127.0.0.1", port)


def test_watch_goes_on_after_a_look_that_failed(proc: FakeProc) -> None:
    """A /proc that cannot be read once does not end the watchdog."""
    looks, stop = [], threading.Event()

    def read() -> object:
        looks.append(1)
        if len(looks) == 1:
            raise NodeError("gone for a moment")
        stop.set()
        return read_memory(proc.path)

    watchdog = Watchdog("spark", Policy(GIB), read, None, Containers(None), {}, lambda: 0.0)  # type: ignore[arg-type]
    Agent("spark", lambda: read_memory(proc.path), watchdog=watchdog).watch(stop, every_seconds=0.001)
    assert len(looks) == 2


def test_unreachable_tower_is_false_not_an_error() -> None:
    """The watchdog goes on without a tower."""
    assert AdminApi("http://127.0.0.1:9", "key", timeout_seconds=0.5).post("/admin/hold", {}) is False


class FakeContainer:
    """As docker's."""

    def __init__(self, id: str, engine: str) -> None:
        self.id = id
        self.labels = {"lmtower.engine": engine}
        self.stopped = False
        self.policy = "on-failure"

    def update(self, restart_policy: dict[str, str]) -> None:
        """As ``docker update --restart``."""
        assert not self.stopped
        self.policy = restart_policy["Name"]

    def stop(self, timeout: int) -> None:
        """Take note."""
        self.stopped = True


class FakeDocker:
    """As docker's client: ``client.containers.list(filters=...)``."""

    def __init__(self, *containers: FakeContainer) -> None:
        self.containers = self
        self._containers = containers

    def list(self, filters: dict[str, str]) -> list[FakeContainer]:
        """Only ours are asked for."""
        assert filters == {"label": "lmtower.engine"}
        return list(self._containers)


def test_containers_know_what_each_engine_holds() -> None:
    """GPU processes are added up by engine; strangers are left out."""
    processes = (GpuProcess(1, "eyes", 3 * GIB), GpuProcess(2, "eyes", GIB), GpuProcess(3, "Xorg", GIB))
    client = FakeDocker(FakeContainer("abc", "eyes"), FakeContainer("def", "coder"))
    containers = Containers(client, lambda: Gpus((Gpu(0, "x", processes=processes),)))
    assert containers.running() == {"eyes": 4 * GIB, "coder": 0}
    assert containers.owners() == {"abc": "eyes", "def": "coder"}


def test_stop_touches_only_that_engine() -> None:
    """The others keep running."""
    eyes, coder = FakeContainer("abc", "eyes"), FakeContainer("def", "coder")
    assert Containers(FakeDocker(eyes, coder)).stop("eyes") is True
    assert (eyes.stopped, coder.stopped) == (True, False)
    assert (eyes.policy, coder.policy) == ("no", "on-failure")


def test_node_without_docker_has_no_containers() -> None:
    """Nothing runs, nothing can be stopped."""
    containers = Containers(None)
    assert containers.running() == {}
    assert containers.stop("eyes") is False
