"""Fixtures over real parts: a Docker engine, a vLLM environment."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
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
    """Gives a free port at each call."""

    def free() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return free
