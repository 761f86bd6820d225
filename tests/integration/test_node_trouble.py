"""Trouble of a node under a real tower: Docker restarts, the watchdog stops an engine, a stranger has a port."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest

from lmtower.cli.running import running_tower
from lmtower.nodes.agent_containers import Containers
from lmtower.nodes.http import healthy
from tests.integration.dockerd import IMAGE, Dockerd, host_mounts, missing
from tests.integration.tower import Tower

pytestmark = pytest.mark.dockerd


@pytest.fixture
def own_dockerd() -> Iterator[Dockerd]:
    """A Docker engine for one test, which may restart it."""
    if reason := missing():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="lmtower-docker-"))
    made = Dockerd(folder)
    try:
        made.start()
        made.import_image()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tower(tmp_path: Path, dockerd: Dockerd, ports: Callable[[], int]) -> Iterator[Tower]:
    """A tower over the Docker engine of these tests; whatever it started is stopped."""
    made = Tower(tmp_path, ports(), {"DOCKER_HOST": dockerd.socket})
    yield made
    made.run("down", "--yes")


def two_engines(ports: Callable[[], int], **node: Any) -> dict[str, Any]:
    """A model and word vectors in containers of one node, a persona of each."""
    shared = {
        "image": IMAGE,
        "mounts": host_mounts(),
        "context": 1024,
        "env": {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
    }
    return {
        "nodes": {"box": {"driver": "docker", "hardware": "cpu", **node}},
        "engines": {
            "small": {"model": "bundled:smollm2", "port": ports(), "importance": 1, **shared},
            "words": {"model": "bundled:wordllama", "port": ports(), **shared},
        },
        "personas": {"quick": {"engine": "small"}, "embed": {"engine": "words"}},
    }


def both_answer(tower: Tower) -> bool:
    """A request to each engine, through the gateway."""
    embedded = tower.post("/v1/embeddings", {"model": "embed", "input": "hello"})[0]
    return tower.chat("quick")[0] == embedded == 200


def states(tower: Tower) -> dict[str, str]:
    """Engine -> state, as ``lmtower status`` tells."""
    return {each["name"]: each["state"] for each in tower.admin("/admin/status")["engines"]}


@pytest.mark.parametrize("with_signal", [signal.SIGTERM, signal.SIGKILL])
def test_tower_survives_a_restart_of_docker(
    tmp_path: Path, own_dockerd: Dockerd, ports: Callable[[], int], with_signal: signal.Signals
) -> None:
    """Docker takes its containers along; the watch goes on, and every engine returns without a person."""
    dockerd = own_dockerd
    tower = Tower(tmp_path, ports(), {"DOCKER_HOST": dockerd.socket})
    tower.write(two_engines(ports))
    tower.up()
    assert both_answer(tower)
    before = dockerd.docker("ps", "-q", "--no-trunc").stdout.split()
    dockerd.restart(with_signal)
    tower.until("both engines answer again", lambda: both_answer(tower))
    tower.until("status is right again", lambda: states(tower) == {"small": "ready", "words": "ready"})
    assert len(dockerd.docker("ps", "-q").stdout.split()) == len(before) == 2
    assert tower.ok("diff").count("runs as it should") == 2
    tower.ok("down", "--yes")
    assert dockerd.docker("ps", "-aq").stdout == ""


@contextmanager
def watchdog_of(dockerd: Dockerd) -> Iterator[Containers]:
    """The node agent's hand on that Docker engine."""
    client = docker.DockerClient(base_url=dockerd.socket)
    try:
        yield Containers(client)
    finally:
        client.close()


def test_what_the_watchdog_stopped_while_the_tower_was_away_stays_stopped(
    tower: Tower, dockerd: Dockerd, ports: Callable[[], int]
) -> None:
    """The tower hangs; its node needs memory. Awake again, it sees that this was no crash; a person starts it."""
    tower.write(two_engines(ports))
    tower.up()
    pid = tower_pid(tower)
    os.kill(pid, signal.SIGSTOP)
    try:
        with watchdog_of(dockerd) as containers:
            assert containers.stop("small")
    finally:
        os.kill(pid, signal.SIGCONT)
    tower.until("the stop is seen", lambda: states(tower)["small"] == "stopped")
    assert "small: node 'box': its watchdog stopped it for memory, and it stays stopped" in tower.ok("status")
    assert dockerd.docker("ps", "--format", "{{.Names}}").stdout.split() == ["lmtower-words"]
    assert tower.post("/v1/embeddings", {"model": "embed", "input": "hello"})[0] == 200
    tower.ok("restart", "small")
    assert both_answer(tower)


def test_new_tower_starts_what_the_watchdog_stopped_only_when_memory_allows(
    tower: Tower, dockerd: Dockerd, ports: Callable[[], int]
) -> None:
    """The tower was gone. With less memory free than the reserve ``up`` leaves the engine stopped and says why."""
    content = two_engines(ports)
    tower.write(content)
    tower.up()
    os.kill(tower_pid(tower), signal.SIGKILL)
    with watchdog_of(dockerd) as containers:
        assert containers.stop("small")
    content["nodes"]["box"]["reserve"] = "4000 GiB"
    tower.write(content)
    said = tower.up()
    assert "its node's watchdog stopped it for memory" in said
    assert "engine 'small' was not started: 4000.0 GiB stay reserved, but node 'box' has" in said
    assert states(tower) == {"small": "failed", "words": "ready"}
    content["nodes"]["box"]["reserve"] = "1 GiB"
    tower.write(content)
    tower.ok("up", "--yes")
    assert both_answer(tower)


def tower_pid(tower: Tower) -> int:
    """The process of the tower in the background."""
    state = running_tower(tower.folder / "data")
    assert state is not None
    return int(state["pid"])


@contextmanager
def web_server(port: int) -> Iterator[int]:
    """Somebody's HTTP server that says 200 to everything, an engine's health check included. Gives its pid."""
    program = Path(__file__).parents[1] / "nodes/engine_program.py"
    process = subprocess.Popen([sys.executable, str(program), "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not asyncio.run(healthy(f"http://127.0.0.1:{port}", "/health")):
            assert time.monotonic() < deadline
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("driver", ["docker", "process"])
def test_stranger_on_the_port_is_not_taken_for_the_engine(
    tower: Tower, dockerd: Dockerd, ports: Callable[[], int], driver: str
) -> None:
    """Its health is fine, but it is not ours: the engine is not started, the stranger is named, the others run."""
    content = two_engines(ports)
    if driver == "process":
        content["nodes"]["box"] = {"driver": "process", "hardware": "cpu"}
        for engine in content["engines"].values():
            del engine["image"], engine["mounts"], engine["env"]
    tower.write(content)
    port = content["engines"]["small"]["port"]
    with web_server(port) as pid:
        said = tower.up()
        assert f"port {port} is taken by python" in said
        assert f"(process {pid}). Stop that program, or write another engines.small.port" in said
        assert states(tower) == {"small": "failed", "words": "ready"}
    tower.ok("restart", "small")
    assert both_answer(tower)
