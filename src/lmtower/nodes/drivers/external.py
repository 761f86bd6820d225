"""The external driver: an engine that somebody else runs. It is watched, never started or stopped."""

from __future__ import annotations

from collections.abc import AsyncIterator

from lmtower.engines.spec import LaunchSpec
from lmtower.errors import EngineError
from lmtower.nodes.drivers.base import Observed, Report
from lmtower.nodes.http import request


class ExternalDriver:
    """URLs that were given to it. ``start`` only looks whether one answers, ``stop`` only looks away."""

    def __init__(self, node: str = "external") -> None:
        self.node = node
        self._known: dict[str, LaunchSpec] = {}

    async def observe(self) -> tuple[Observed, ...]:
        """The URLs that are watched, and whether they answer."""
        return tuple([await self._observed(name, spec) for name, spec in self._known.items()])

    async def start(self, spec: LaunchSpec) -> None:
        """Watch it from now on. Raises EngineError when nobody answers there."""
        self._known.pop(spec.name, None)
        if not await _answers(spec):
            raise EngineError(
                f"engine {spec.engine!r}: nobody answers at {spec.url}. Check engines.{spec.engine}.url, and that the "
                "engine runs"
            )
        self._known[spec.name] = spec

    async def stop(self, name: str, grace_seconds: float = 30.0) -> None:
        """Watch it no more; it runs on."""
        self._known.pop(name, None)

    async def logs(self, name: str, lines: int = 200) -> str:
        """Its logs are with whoever runs it."""
        spec = self._known.get(name)
        return f"{spec.url} is run by somebody else, and so are its logs\n" if spec else ""

    async def follow(self, name: str, lines: int = 200) -> AsyncIterator[str]:
        """The same."""
        for line in (await self.logs(name)).splitlines():
            yield line

    async def pull(self, spec: LaunchSpec, report: Report) -> None:
        """Nothing of it is fetched by us."""

    async def version(self, image: str) -> str | None:
        """Whoever runs it knows."""
        return None

    async def occupant(self, port: int) -> str:
        """Nothing is started here, so no port has to be free."""
        return "another program"

    async def close(self) -> None:
        """There is no connection to let go of."""

    async def _observed(self, name: str, spec: LaunchSpec) -> Observed:
        running = await _answers(spec)
        return Observed(name, spec.engine, self.node, spec.spec_hash, running, None if running else 1, port=spec.port)


async def _answers(spec: LaunchSpec) -> bool:
    """Any answer but a server error counts: an OpenAI-compatible URL may have no /health, and ask for a key."""
    for path in (spec.health_path or "/health", "/v1/models"):
        answer = await request(spec.url, path, key=spec.api_key)
        if answer is not None and answer.status < 500 and answer.status != 404:
            return True
    return False
