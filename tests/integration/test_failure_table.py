"""The failure table of docs/muscle.md: every row produced for real, and told in one sentence with what to do."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lmtower.engines.spec import LaunchSpec, Mount
from lmtower.errors import EngineError, NodeError
from lmtower.nodes.drivers.docker import DockerDriver
from lmtower.nodes.drivers.process import ProcessDriver
from lmtower.nodes.supervisor import Supervisor
from tests.integration.dockerd import IMAGE, REPOSITORY, Dockerd, host_mounts

pytestmark = pytest.mark.dockerd
PROGRAM = str(REPOSITORY / "tests/nodes/engine_program.py")


@pytest.fixture
async def supervisor(dockerd: Dockerd, tmp_path: Path) -> AsyncIterator[Supervisor]:
    """A supervisor of a Docker node and of child processes."""
    drivers = {
        "box": DockerDriver("box", socket=dockerd.socket),
        "local": ProcessDriver("local", tmp_path, dict(os.environ)),
    }
    made = Supervisor(drivers, start_timeout_seconds=60, watch_seconds=3600)
    yield made
    for found in await drivers["box"].observe():
        await drivers["box"].stop(found.name, grace_seconds=0)
    await made.close()


@pytest.fixture
def spec(ports: Callable[[], int]) -> Callable[..., LaunchSpec]:
    """A small engine in a container; words are its behaviour."""

    def make(*words: str, **fields: object) -> LaunchSpec:
        port = ports()
        mounts = tuple(Mount(text.split(":")[0], text.split(":")[0], read_only=True) for text in host_mounts())
        argv = (sys.executable, "-u", PROGRAM, "--port", str(port), *words)
        plain = LaunchSpec("coder", "box", "vllm", argv, IMAGE, mounts=mounts, port=port, restart="no")
        return replace(plain, **fields).sealed()  # type: ignore[arg-type]

    return make


async def refusal(supervisor: Supervisor, spec: LaunchSpec) -> str:
    """The error of a start that must fail, after which nothing of the engine is left."""
    with pytest.raises((EngineError, NodeError)) as caught:
        await supervisor.launch(spec)
    assert supervisor.statuses()[-1].state == "failed"
    return str(caught.value)


async def test_image_missing(supervisor: Supervisor, spec: Callable[..., LaunchSpec]) -> None:
    """The image is neither there nor to be had."""
    said = await refusal(supervisor, spec(image="registry.invalid/nobody/nothing:1"))
    assert "image 'registry.invalid/nobody/nothing:1' is not on node 'box' and could not be pulled" in said
    assert "Check engines.coder.image and the node's network, or load it there: docker load" in said


async def test_weights_missing_in_a_container(supervisor: Supervisor, spec: Callable[..., LaunchSpec]) -> None:
    """The folder of the model is not on the node."""
    plain = spec()
    mounts = (*plain.mounts, Mount("/no/such/model", "/no/such/model", read_only=True))
    said = await refusal(supervisor, replace(plain, mounts=mounts).sealed())
    assert "the model's weights are missing on the node" in said
    assert "lmtower pull" in said


async def test_weights_missing_in_a_process(supervisor: Supervisor, ports: Callable[[], int]) -> None:
    """The embedded engine's file is not there."""
    port = ports()
    argv = (sys.executable, "-m", "lmtower.nodes.embedded", "--model", "/no/such.gguf", "--port", str(port))
    said = await refusal(supervisor, LaunchSpec("small", "local", "llamacpp", argv, port=port).sealed())
    assert "the model's weights are missing on the node" in said


async def test_port_taken(supervisor: Supervisor, spec: Callable[..., LaunchSpec]) -> None:
    """Another program listens where the engine should: this one. It is named."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        said = await refusal(supervisor, replace(spec(), port=stranger.getsockname()[1]))
    assert re.search(rf"is taken by \S+ \(process {os.getpid()}\)\. Stop that program, or write another engines", said)


async def test_out_of_memory_at_start(supervisor: Supervisor, ports: Callable[[], int]) -> None:
    """llama.cpp under a real limit of address space cannot have the KV cache that it wants."""
    port = ports()
    engine = f"{sys.executable} -m lmtower.nodes.embedded --model bundled:smollm2 --port {port} --context 200000"
    argv = ("sh", "-c", f"ulimit -v 2000000; exec {engine}")
    said = await refusal(supervisor, LaunchSpec("small", "local", "llamacpp", argv, port=port).sealed())
    assert "it ran out of memory. Make context, sequences or kv_cache_memory smaller" in said


async def test_killed_for_memory_at_start(supervisor: Supervisor, spec: Callable[..., LaunchSpec]) -> None:
    """The kernel leaves no line in the engine's log; the exit code tells."""
    plain = spec()
    said = await refusal(
        supervisor, replace(plain, argv=("/bin/sh", "-c", "/bin/sh -c 'kill -9 $$'; exit $?")).sealed()
    )
    assert "most likely by the kernel for memory" in said


async def test_health_never_comes(dockerd: Dockerd, spec: Callable[..., LaunchSpec]) -> None:
    """It runs, but does not answer within the time."""
    driver = DockerDriver("box", socket=dockerd.socket)
    supervisor = Supervisor({"box": driver}, start_timeout_seconds=3)
    said = await refusal(supervisor, spec("--deaf"))
    assert "runs but did not answer" in said
    assert "it was stopped" in said
    assert await driver.observe() == ()
    await supervisor.close()


async def test_wrong_architecture(dockerd: Dockerd, supervisor: Supervisor, spec: Callable[..., LaunchSpec]) -> None:
    """An image for another processor is refused before it is started."""
    other = "arm64" if os.uname().machine == "x86_64" else "amd64"
    dockerd.load_image("lmtower-other:1", other)
    said = await refusal(supervisor, spec(image="lmtower-other:1"))
    assert f"image 'lmtower-other:1' was built for {other}, but node 'box' is" in said


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "full"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_disk_full(supervisor: Supervisor, spec: Callable[..., LaunchSpec], full_disk: Path) -> None:
    """The folder of weights and caches cannot take another byte."""
    plain = spec("--fill", "/caches/weights")
    said = await refusal(supervisor, replace(plain, mounts=(*plain.mounts, Mount(str(full_disk), "/caches"))).sealed())
    assert "the node's disk is full. Free space on the node: docker system df" in said


async def test_bad_flag(supervisor: Supervisor, ports: Callable[[], int]) -> None:
    """A flag that this version does not know."""
    port = ports()
    argv = (sys.executable, "-m", "lmtower.nodes.embedded", "--model", "bundled:smollm2", "--port", str(port), "--nope")
    said = await refusal(supervisor, LaunchSpec("small", "local", "llamacpp", argv, port=port).sealed())
    assert "this version does not know the flag --nope" in said


def test_docker_permission_denied(dockerd: Dockerd) -> None:
    """A user who may not open Docker's socket is told how to be allowed to."""
    program = (
        "import asyncio, os, docker, requests, getpass, concurrent.futures.thread, lmtower.nodes.reach\n"
        "import encodings.idna, docker.transport.unixconn\n"
        "from lmtower.nodes.drivers.docker import DockerDriver\n"
        f"driver = DockerDriver('box', socket={dockerd.socket!r})\n"
        "os.setegid(65534); os.seteuid(65534); os.environ['LOGNAME'] = 'somebody'\n"
        "asyncio.run(driver.observe())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "you may not use Docker here. Run: sudo usermod -aG docker somebody" in done.stderr


async def test_no_docker_engine_runs(tmp_path: Path) -> None:
    """Nobody listens at the socket."""
    driver = DockerDriver("box", socket=f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(Exception, match=r"no Docker engine runs here\. Start it \(sudo systemctl start docker\)"):
        await driver.observe()


@pytest.mark.vllm
async def test_vllm_refuses_a_cache_larger_than_memory(
    supervisor: Supervisor, ports: Callable[[], int], vllm_python: Path, smollm2: Path
) -> None:
    """vLLM's own check at start, in its own words, becomes one sentence with the numbers."""
    port = ports()
    argv = (
        str(vllm_python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(smollm2), "--port", str(port),
        "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024",
        "--kv-cache-memory-bytes", str(900 * 1024**3),
    )  # fmt: skip
    supervisor._start_timeout = 300
    said = await refusal(supervisor, LaunchSpec("real", "local", "vllm", argv, port=port).sealed())
    assert "its start-up check refused it: only" in said
    assert "GiB were available" in said
