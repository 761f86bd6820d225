"""Fixtures of the muscle: a free port, a process driver, and a supervisor that ends its children."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from lmtower.engines.spec import LaunchSpec
from lmtower.nodes.drivers.process import ProcessDriver
from lmtower.nodes.supervisor import Supervisor

FAKE = str(Path(__file__).with_name("engine_program.py"))


@pytest.fixture
def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def fake_spec(free_port: int) -> Callable[..., LaunchSpec]:
    """Makes a spec of the small engine program of these tests; words are its behaviour."""

    def make(engine: str = "one", *words: str, port: int = free_port, **fields: object) -> LaunchSpec:
        argv = (sys.executable, FAKE, "--port", str(port), *words)
        return LaunchSpec(engine=engine, node="local", runtime="vllm", argv=argv, port=port, **fields).sealed()  # type: ignore[arg-type]

    return make


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[ProcessDriver]:
    """A process driver over a fresh data folder; its children end with the test."""
    made = ProcessDriver("local", tmp_path / "data", dict(os.environ))
    yield made
    await made.close()


@pytest.fixture
async def supervisor(driver: ProcessDriver) -> AsyncIterator[Supervisor]:
    """A quick supervisor of that driver."""
    made = Supervisor({"local": driver}, watch_seconds=0.05, start_timeout_seconds=10)
    yield made
    await made.close()


@pytest.fixture
def another_port(free_port: int) -> int:
    """A second port nobody listens on."""
    with socket.socket() as first, socket.socket() as probe:
        first.bind(("127.0.0.1", free_port))
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
