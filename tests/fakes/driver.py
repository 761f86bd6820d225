"""A driver that only remembers: what was started, stopped and pulled, in order. For tests of decisions."""

from __future__ import annotations

from collections.abc import AsyncIterator

from lmtower.engines.spec import LaunchSpec
from lmtower.errors import TowerError
from lmtower.nodes.drivers import Observed, Progress
from lmtower.nodes.drivers.base import Report


class RecordingDriver:
    """Engines exist as values only. ``fail`` maps an engine to the error that its start raises."""

    def __init__(self, node: str = "local") -> None:
        self.node = node
        self.calls: list[tuple[str, str]] = []
        self.running: dict[str, LaunchSpec] = {}
        self.ended: dict[str, tuple[LaunchSpec, int]] = {}
        self.output: dict[str, str] = {}
        self.fail: dict[str, TowerError] = {}
        self.versions: dict[str, str] = {}
        self.policies: dict[str, str] = {}
        self.restarts: dict[str, int] = {}

    async def observe(self) -> tuple[Observed, ...]:
        """What was started and not stopped."""
        alive = [
            Observed(
                name,
                spec.engine,
                self.node,
                spec.spec_hash,
                True,
                port=spec.port,
                restarts=self.restarts.get(name, 0),
            )
            for name, spec in self.running.items()
        ]
        dead = [
            Observed(
                name,
                spec.engine,
                self.node,
                spec.spec_hash,
                False,
                exit_code=code,
                port=spec.port,
                restart=self.policies.get(name, spec.restart),
            )
            for name, (spec, code) in self.ended.items()
        ]
        return (*alive, *dead)

    async def start(self, spec: LaunchSpec) -> None:
        """Remember it as running, or raise what ``fail`` holds."""
        self.calls.append(("start", spec.name))
        if spec.engine in self.fail:
            raise self.fail[spec.engine]
        self.ended.pop(spec.name, None)
        self.running[spec.name] = spec
        self.output[spec.name] = f"{spec.name} starts\n"

    async def stop(self, name: str, grace_seconds: float = 30.0) -> None:
        """Forget it."""
        self.calls.append(("stop", name))
        self.policies.pop(name, None)
        self.running.pop(name, None)
        self.ended.pop(name, None)
        self.output.pop(name, None)

    def end(self, name: str, exit_code: int = 1) -> None:
        """Let a running engine crash."""
        self.ended[name] = (self.running.pop(name), exit_code)

    async def occupant(self, port: int) -> str:
        """Nobody in particular."""
        return "another program"

    async def logs(self, name: str, lines: int = 200) -> str:
        """What it would have written."""
        return self.output.get(name, "")

    async def follow(self, name: str, lines: int = 200) -> AsyncIterator[str]:
        """The same, line by line."""
        for line in self.output.get(name, "").splitlines():
            yield line

    async def pull(self, spec: LaunchSpec, report: Report) -> None:
        """Remember it, and report one step of progress."""
        self.calls.append(("pull", spec.name))
        report(Progress(f"image {spec.image}", 1, 1))

    async def version(self, image: str) -> str | None:
        """What ``versions`` says."""
        return self.versions.get(image)

    async def close(self) -> None:
        """Nothing to let go of."""
        self.calls.append(("close", ""))
