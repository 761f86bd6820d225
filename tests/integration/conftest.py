"""Fixtures over real parts: a Docker engine, a vLLM environment."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
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


@pytest.fixture(scope="module")
def vllm(vllm_python: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Real vLLM on CPU, ready; its base URL."""
    folder = tmp_path_factory.mktemp("vllm")
    port = 8961
    command = [str(vllm_python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(smollm2)]
    command += ["--served-model-name", "smol"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "2048", "--max-num-seqs", "4"]
    command += ["--enable-prefix-caching", "--enable-prompt-tokens-details", "--enforce-eager", "--dtype", "float32"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PATH"] = f"{vllm_python.parent}:{os.environ['PATH']}"
    with (folder / "vllm.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(url, process, folder / "vllm.log")
            yield url
        finally:
            process.terminate()
            process.wait(60)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 400
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url + "/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)  # a foreign program tells nobody when it is ready
    raise AssertionError(log.read_text()[-3000:])
