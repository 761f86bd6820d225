"""The process driver: engines as child processes of the tower, each with a log file and a leash.

A child lives as long as the pipe on its standard input. The embedded engine watches that pipe itself; every other
command runs under ``lmtower.nodes.leash``, which does it for them. So an engine dies with the tower, even on
``kill -9``, and an engine's crash never takes the tower along. Each engine's state is also a small file, so that
other ``lmtower`` commands can see what runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmtower.engines.failures import recognise
from lmtower.engines.spec import LaunchSpec
from lmtower.errors import EngineError
from lmtower.nodes.drivers.base import VERSION_PROGRAM, Observed, Progress, Report, parse_version
from lmtower.nodes.fetch import fetch_command, needs_weights, parse_progress
from lmtower.nodes.reach import occupant
from lmtower.nodes.tail import follow_file, last_lines
from lmtower.processes import identity, runs, this_process

_LOG_LIMIT_BYTES = 32 * 1024**2
_LOOK_SECONDS = 0.05


@dataclass(slots=True)
class _Child:
    spec: LaunchSpec
    process: Process


class ProcessDriver:
    """Child processes of this process. ``state_dir`` and ``log_dir`` are made when needed."""

    def __init__(self, node: str, data_dir: Path, environ: Mapping[str, str]) -> None:
        self.node = node
        self._log_dir = data_dir / "logs"
        self._state_dir = data_dir / "engines"
        self._environ = environ
        self._children: dict[str, _Child] = {}

    async def observe(self) -> tuple[Observed, ...]:
        """Our children, and what another tower process of this data folder has written down and still runs."""
        found = {name: self._observed(name, child) for name, child in self._children.items()}
        for path in sorted(self._state_dir.glob("*.json")) if self._state_dir.is_dir() else ():
            if path.stem not in found and (other := _read_state(path, self.node)):
                found[path.stem] = other
        return tuple(found.values())

    async def start(self, spec: LaunchSpec) -> None:
        """Start the command. Raises EngineError when it cannot even be executed."""
        await self.stop(spec.name)
        self._log_dir.mkdir(parents=True, exist_ok=True)
        self._state_dir.mkdir(parents=True, exist_ok=True)
        log = self.log_path(spec.name)
        if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
            log.replace(log.with_suffix(".log.1"))
        argv = spec.argv if "lmtower.nodes.embedded" in spec.argv else leashed(spec.argv)
        with log.open("ab") as out:
            out.write(f"--- lmtower starts {spec.name}\n".encode())
            out.flush()
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=PIPE,
                    stdout=out,
                    stderr=out,
                    env={**self._environ, **spec.env, **spec.secrets},
                    start_new_session=True,
                )
            except OSError as error:
                raise EngineError(f"engine {spec.engine!r}: cannot run {argv[0]!r}: {error.strerror}") from error
        self._children[spec.name] = _Child(spec, process)
        state = {
            "engine": spec.engine,
            "node": self.node,
            "spec_hash": spec.spec_hash,
            "port": spec.port,
            "pid": process.pid,
            "began": identity(process.pid),
            "tower": this_process(),
        }
        self._state_path(spec.name).write_text(json.dumps(state), "utf-8")

    async def stop(self, name: str, grace_seconds: float = 30.0) -> None:
        """SIGTERM, then after the grace SIGKILL to the whole process group."""
        child = self._children.pop(name, None)
        if child is None:
            await self._end_orphan(name, grace_seconds)
        if child is not None and child.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.process.terminate()
            try:
                await asyncio.wait_for(child.process.wait(), grace_seconds)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.process.pid, signal.SIGKILL)
                await child.process.wait()
        self._state_path(name).unlink(missing_ok=True)

    async def wait(self, name: str) -> int:
        """Wait until the child ends. Returns its exit code. Raises KeyError when it is not ours."""
        return await self._children[name].process.wait()

    async def logs(self, name: str, lines: int = 200) -> str:
        """The end of the log file."""
        return await asyncio.to_thread(last_lines, self.log_path(name), lines)

    async def follow(self, name: str, lines: int = 200) -> AsyncIterator[str]:
        """The log file as it grows."""
        async for line in follow_file(self.log_path(name), lines):
            yield line

    async def pull(self, spec: LaunchSpec, report: Report) -> None:
        """A process has no image; its weights are fetched by its own Python. Raises EngineError."""
        if not needs_weights(spec):
            return
        command = fetch_command(spec.argv[0], spec.served_model)
        process = await asyncio.create_subprocess_exec(
            *command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, env={**self._environ, **spec.env, **spec.secrets}
        )
        assert process.stdout is not None
        said: list[str] = []
        async for raw in process.stdout:
            line = raw.decode("utf-8", "replace")
            said = [*said[-200:], line]
            if (at := parse_progress(line)) is not None:
                report(Progress(f"weights {spec.served_model}", *at))
        if await process.wait():
            raise EngineError(f"engine {spec.engine!r}: {recognise(''.join(said), 1, engine=spec.engine)}")

    async def version(self, image: str) -> str | None:
        """``image`` is a Python; it is asked."""
        try:
            process = await asyncio.create_subprocess_exec(
                image, "-c", VERSION_PROGRAM, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, env=dict(self._environ)
            )
        except OSError:
            return None
        out, _ = await process.communicate()
        return parse_version(out.decode("utf-8", "replace"))

    async def occupant(self, port: int) -> str:
        """This machine is asked."""
        return await occupant("local", port)

    async def close(self) -> None:
        """End all children."""
        await asyncio.gather(*(self.stop(name) for name in list(self._children)))

    def log_path(self, name: str) -> Path:
        """The log file of an engine."""
        return self._log_dir / f"{name}.log"

    def _state_path(self, name: str) -> Path:
        return self._state_dir / f"{name}.json"

    async def _end_orphan(self, name: str, grace_seconds: float) -> None:
        """What a tower left that was killed: its end of the pipe is closed, so it is about to end by itself."""
        state = _state(self._state_path(name))
        if state is None or not runs(state["pid"], state["began"]):
            return
        for number, longest in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, grace_seconds)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(state["pid"], number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(longest):
                    while runs(state["pid"], state["began"]):  # noqa: ASYNC110 - no child of ours: nothing to await
                        await asyncio.sleep(_LOOK_SECONDS)
                return

    def _observed(self, name: str, child: _Child) -> Observed:
        code = child.process.returncode
        return Observed(
            name=name,
            engine=child.spec.engine,
            node=self.node,
            spec_hash=child.spec.spec_hash,
            running=code is None,
            exit_code=code,
            out_of_memory=code == -signal.SIGKILL,
            port=child.spec.port,
            pid=child.process.pid,
        )


def leashed(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The command under a watcher that ends it when our end of the pipe closes."""
    return (sys.executable, "-m", "lmtower.nodes.leash", *argv)


def _read_state(path: Path, node: str) -> Observed | None:
    """An engine of another tower process; None when either has ended: without its tower an engine ends, too."""
    state = _state(path)
    if state is None or state["node"] != node:
        return None
    if not runs(state["tower"]["pid"], state["tower"]["began"]) or not runs(state["pid"], state["began"]):
        return None
    return Observed(path.stem, state["engine"], node, state["spec_hash"], True, port=state["port"], pid=state["pid"])


def _state(path: Path) -> dict[str, Any] | None:
    """What was written down at the start; None when there is nothing, or another version of ours wrote it."""
    try:
        state: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return state if {"engine", "node", "spec_hash", "port", "pid", "began", "tower"} <= state.keys() else None
