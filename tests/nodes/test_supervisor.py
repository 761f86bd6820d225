"""The supervisor over real child processes: start, explain, restart, stop, leave nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lmtower.engines.spec import LaunchSpec
from lmtower.errors import EngineError, NodeError
from lmtower.nodes.drivers.process import ProcessDriver
from lmtower.nodes.http import request
from lmtower.nodes.supervisor import EngineStatus, Supervisor
from tests.fakes.driver import RecordingDriver

Make = Callable[..., LaunchSpec]


class Changes:
    """Collects statuses and lets a test wait for one."""

    def __init__(self) -> None:
        self.seen: list[EngineStatus] = []
        self._event = asyncio.Event()

    def __call__(self, status: EngineStatus) -> None:
        self.seen.append(status)
        self._event.set()

    async def until(self, state: str, count: int = 1) -> None:
        """Wait until a state was seen that often."""
        async with asyncio.timeout(10):
            while sum(status.state == state for status in self.seen) < count:
                self._event.clear()
                await self._event.wait()


async def test_start_waits_until_the_engine_answers(supervisor: Supervisor, fake_spec: Make) -> None:
    """After start the engine is ready and answers."""
    spec = fake_spec()
    await supervisor.launch(spec)
    answer = await request(spec.url, "/health")
    assert answer is not None
    assert answer.status == 200
    assert [status.state for status in supervisor.statuses()] == ["ready"]


async def test_start_explains_a_crash_and_leaves_nothing(
    supervisor: Supervisor, driver: ProcessDriver, fake_spec: Make
) -> None:
    """An engine that ends while it loads is told in one sentence with the fix."""
    with pytest.raises(
        EngineError, match=r"engine 'one' on node 'local' stopped .* it ran out of memory\. Make context"
    ):
        await supervisor.launch(fake_spec("one", "--crash", "torch.OutOfMemoryError: CUDA out of memory"))
    assert await driver.observe() == ()
    assert supervisor.statuses()[0].state == "failed"


async def test_start_of_an_engine_that_never_answers_gives_up(driver: ProcessDriver, fake_spec: Make) -> None:
    """Health that never comes ends in an error that says so, and the process is gone."""
    supervisor = Supervisor({"local": driver}, start_timeout_seconds=0.5)
    with pytest.raises(EngineError, match=r"did not answer .*/health within"):
        await supervisor.launch(fake_spec("one", "--deaf"))
    assert await driver.observe() == ()


async def test_start_on_a_taken_port_is_refused(supervisor: Supervisor, fake_spec: Make) -> None:
    """A stranger on the port would answer in the engine's place, so the engine is not even started; it is named."""
    who = rf"\S+ \(process {os.getpid()}\)" if shutil.which("ss") else "another program"
    with (
        socket.create_server(("127.0.0.1", 0)) as stranger,
        pytest.raises(
            EngineError, match=rf"is taken by {who}\. Stop that program, or write another engines\.one\.port"
        ),
    ):
        await supervisor.launch(fake_spec(port=stranger.getsockname()[1]))


async def test_stranger_who_comes_while_the_engine_loads_is_not_taken_for_it(
    supervisor: Supervisor, driver: ProcessDriver, fake_spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port was free when it was looked at; then another model answers there. That is told, and ours is stopped."""
    mine = replace(fake_spec("one", "--deaf"), served_model="mine")
    stranger = ProcessDriver("local", driver.log_path("x").parents[1] / "stranger", dict(os.environ))
    start = driver.start

    async def start_late(spec: LaunchSpec) -> None:
        other = fake_spec("other", "--serves", "theirs", port=spec.port)
        await stranger.start(other)
        while await request(other.url, "/health") is None:  # noqa: ASYNC110 - a child tells nobody when it listens
            await asyncio.sleep(0.01)
        await start(spec)

    monkeypatch.setattr(driver, "start", start_late)
    with pytest.raises(
        EngineError, match=rf"port {mine.port} answers for \['theirs'\], not for 'mine'; it is taken by"
    ):
        await supervisor.launch(mine)
    assert await driver.observe() == ()
    await stranger.close()


async def test_engine_that_lists_its_model_is_ready(supervisor: Supervisor, fake_spec: Make) -> None:
    """What every real engine does."""
    await supervisor.launch(replace(fake_spec("one", "--serves", "mine"), served_model="mine"))
    assert supervisor.statuses()[0].state == "ready"


async def test_engine_that_its_node_stopped_on_purpose_stays_stopped(fake_spec: Make) -> None:
    """It ended, and somebody took its restart policy away: no crash, so no restart until a person starts it."""
    driver, changes = RecordingDriver(), Changes()
    supervisor = Supervisor({"local": driver}, on_change=changes, watch_seconds=0.01)
    spec = fake_spec(health_path=None)
    await supervisor.launch(spec)
    driver.policies[spec.name] = "no"
    driver.end(spec.name, 143)
    await changes.until("stopped")
    await asyncio.sleep(0.1)
    (status,) = supervisor.statuses()
    assert (status.state, status.restarts) == ("stopped", 0)
    assert "its watchdog stopped it for memory" in status.detail
    assert "lmtower restart one" in status.detail
    await supervisor.start("one")
    assert supervisor.statuses()[0].state == "ready"
    await supervisor.close()


async def test_return_that_no_look_saw_is_known_by_its_count(fake_spec: Make) -> None:
    """A small engine is back within a second, by its node's restart policy: its caches are cold, so it is warmed up."""
    driver, changes, warmed = RecordingDriver(), Changes(), asyncio.Event()

    async def warm(spec: LaunchSpec) -> None:
        warmed.set()

    supervisor = Supervisor({"local": driver}, on_change=changes, on_return=warm, watch_seconds=0.01)
    spec = fake_spec(health_path=None)
    await supervisor.launch(spec)
    await asyncio.sleep(0.05)
    assert not warmed.is_set()
    driver.restarts[spec.name] = 1
    await changes.until("ready", 2)
    async with asyncio.timeout(10):
        await warmed.wait()
    await asyncio.sleep(0.05)
    assert [status.state for status in changes.seen] == ["starting", "ready", "starting", "ready"]
    assert supervisor.statuses()[0].restarts == 1
    await supervisor.close()


async def test_engine_that_a_person_starts_on_its_node_is_ready_again(fake_spec: Make) -> None:
    """``docker start`` by hand: the watch finds it, and it serves again; one with other flags is not it."""
    driver, changes = RecordingDriver(), Changes()
    supervisor = Supervisor({"local": driver}, on_change=changes, watch_seconds=0.01)
    spec = fake_spec(health_path=None)
    supervisor.adopt(spec, "failed", "it did not fit")
    await driver.start(fake_spec(env={"OTHER": "1"}, health_path=None))
    await asyncio.sleep(0.1)
    assert supervisor.statuses()[0].detail == "it did not fit"
    await driver.start(spec)
    await changes.until("ready")
    assert [status.state for status in changes.seen] == ["failed", "starting", "ready"]
    await supervisor.close()


async def test_crash_is_followed_by_a_restart(driver: ProcessDriver, fake_spec: Make) -> None:
    """A killed engine is failed, then starting, then ready again, and the restart is counted."""
    changes = Changes()
    supervisor = Supervisor({"local": driver}, watch_seconds=0.05, start_timeout_seconds=10, on_change=changes)
    spec = fake_spec()
    await supervisor.launch(spec)
    (found,) = await driver.observe()
    os.killpg(found.pid or 0, signal.SIGKILL)
    await changes.until("ready", 2)
    assert [status.state for status in changes.seen] == ["starting", "ready", "failed", "starting", "ready"]
    assert supervisor.statuses()[0].restarts == 1
    await supervisor.close()


async def test_node_that_goes_away_while_it_is_asked_for_the_log_is_watched_on(
    driver: ProcessDriver, fake_spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Docker engine that restarts ends its containers and then hangs up: the watch goes on, and starts them again."""
    changes = Changes()
    supervisor = Supervisor({"local": driver}, on_change=changes, watch_seconds=0.05)
    await supervisor.launch(fake_spec())
    logs, asked = driver.logs, []

    async def hang_up(name: str, lines: int = 200) -> str:
        asked.append(name)
        if len(asked) == 1:
            raise NodeError("node 'local': the connection to its Docker engine broke")
        return await logs(name, lines)

    monkeypatch.setattr(driver, "logs", hang_up)
    os.kill((await driver.observe())[0].pid or 0, signal.SIGKILL)
    await changes.until("failed")
    await changes.until("ready", 2)
    assert len(asked) >= 2
    await supervisor.close()


async def test_engine_that_came_back_is_warmed_up_again(driver: ProcessDriver, fake_spec: Make) -> None:
    """Its caches are cold after a crash; a deliberate start is warmed up by whoever asked for it."""
    warmed = asyncio.Event()

    async def warm(spec: LaunchSpec) -> None:
        warmed.set()

    supervisor = Supervisor({"local": driver}, watch_seconds=0.05, start_timeout_seconds=10, on_return=warm)
    spec = fake_spec()
    await supervisor.launch(spec)
    assert not warmed.is_set()
    await request(spec.url, "/die")
    async with asyncio.timeout(10):
        await warmed.wait()
    await supervisor.close()


async def test_replacement_is_not_taken_for_a_crash(driver: ProcessDriver, fake_spec: Make) -> None:
    """Draining and launching again while the watch looks leaves the new engine, once."""
    supervisor = Supervisor({"local": driver}, watch_seconds=0.001, start_timeout_seconds=10)
    await supervisor.launch(fake_spec())
    await supervisor.drain("local", "lmtower-one")
    await asyncio.sleep(0.05)
    changed = fake_spec("one", env={"CHANGED": "1"})
    await supervisor.launch(changed)
    await asyncio.sleep(0.05)
    (found,) = await driver.observe()
    assert found.spec_hash == changed.spec_hash
    assert supervisor.statuses()[0].restarts == 0
    await supervisor.close()


async def test_another_engine_survives_a_crash(driver: ProcessDriver, fake_spec: Make, another_port: int) -> None:
    """One engine's end does not touch its neighbour."""
    changes = Changes()
    supervisor = Supervisor({"local": driver}, watch_seconds=0.05, start_timeout_seconds=10, on_change=changes)
    first, second = fake_spec("one"), fake_spec("two", port=another_port)
    await supervisor.launch(first)
    await supervisor.launch(second)
    pids = {found.engine: found.pid for found in await driver.observe()}
    await request(first.url, "/die")
    await changes.until("ready", 3)
    after = {found.engine: found.pid for found in await driver.observe()}
    assert after["two"] == pids["two"]
    assert after["one"] != pids["one"]
    await supervisor.close()


async def test_stop_leaves_the_engine_stopped(supervisor: Supervisor, driver: ProcessDriver, fake_spec: Make) -> None:
    """A stopped engine is not started again by the watch."""
    await supervisor.launch(fake_spec())
    await supervisor.stop("one")
    await asyncio.sleep(0.2)
    assert await driver.observe() == ()
    assert supervisor.statuses()[0].state == "stopped"


async def test_restart_gives_a_new_process(supervisor: Supervisor, driver: ProcessDriver, fake_spec: Make) -> None:
    """Restart replaces the process and ends ready."""
    await supervisor.launch(fake_spec())
    (before,) = await driver.observe()
    await supervisor.restart("one")
    (after,) = await driver.observe()
    assert after.pid != before.pid
    assert supervisor.statuses()[0].state == "ready"


async def test_unknown_engine_is_an_error(supervisor: Supervisor) -> None:
    """Nothing is stopped by a wrong name."""
    with pytest.raises(EngineError, match="no engine 'nobody'"):
        await supervisor.stop("nobody")


async def test_close_ends_helpers_too(driver: ProcessDriver, fake_spec: Make, tmp_path: Path) -> None:
    """The helper of a vLLM-like engine does not outlive it."""
    supervisor = Supervisor({"local": driver}, start_timeout_seconds=10)
    pid_file = tmp_path / "pid"
    await supervisor.launch(fake_spec("one", "--child", str(pid_file)))
    await supervisor.close()
    assert not _alive(int(pid_file.read_text()))


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
