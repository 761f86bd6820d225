"""Fixtures over real parts: a Docker engine, a vLLM environment."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.dockerd import REPOSITORY, Dockerd, missing


@pytest.fixture(scope="session")
def dockerd() -> Iterator[Dockerd]:
    """A Docker engine of our own with the test image; skipped where none can run."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="lmtower-docker-"))
    engine = Dockerd(folder)
    engine.start()
    try:
        engine.import_image()
        yield engine
    finally:
        engine.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """The Python of a vLLM-on-CPU environment; tests/integration/vllm_env.sh makes one."""
    path = Path(os.environ.get("LMTOWER_TEST_VLLM") or REPOSITORY / ".venv-vllm/bin/python")
    if not path.exists():
        pytest.skip("needs a vLLM environment: tests/integration/vllm_env.sh")
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2 as safetensors, made by the same script."""
    path = REPOSITORY / ".cache/smollm2"
    if not (path / ".ready").exists():
        pytest.skip("needs the model: tests/integration/vllm_env.sh")
    return path


@pytest.fixture
def ports() -> Callable[[], int]:
    """Gives at each call a port that is free, and so is the next: a tower's admin listener takes that one.

    Below the range from which outgoing connections get theirs, so that none takes it before the tower does.
    """

    def free() -> int:
        while True:
            port = 20_000 + 2 * secrets.randbelow(6_000)
            with socket.socket() as one, socket.socket() as other, suppress(OSError):
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 1))
                return port

    return free
