"""The muscle on real parts: two engines in containers, one of them real vLLM on CPU, from `up` to `down`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.dockerd import IMAGE, Dockerd, host_mounts
from tests.integration.tower import Tower

pytestmark = [pytest.mark.dockerd, pytest.mark.vllm]


def tower_file(folder: Path, vllm: Path, model: Path, ports: Callable[[], int]) -> dict[str, Any]:
    """A Docker node without a GPU, vLLM and llama.cpp on it, a persona of each."""
    shared = {"node": "box", "image": IMAGE, "mounts": host_mounts(vllm.parents[1]), "sequences": 2}
    here = Path(sys.executable).parent
    return {
        "nodes": {"box": {"driver": "docker", "hardware": "cpu", "models": str(folder / "models")}},
        "engines": {
            "real": {
                "model": str(model),
                "runtime": "vllm",
                "version": "0.32.0",
                "recipe": "smollm2",
                "context": 2048,
                "kv_cache_memory": "512 MiB",
                "port": ports(),
                "env": {"PATH": f"/usr-bin:{vllm.parent}:/usr/bin:/bin", "HOME": "/tmp"},
                **shared,
            },
            "small": {
                "model": "bundled:smollm2",
                "context": 1024,
                "port": ports(),
                "env": {"PATH": f"{here}:/usr/bin:/bin"},
                **shared,
            },
        },
        "personas": {
            "thorough": {"engine": "real", "system": "You are a careful assistant. " * 40},
            "quick": {"engine": "small"},
        },
    }


@pytest.fixture
def tower(tmp_path: Path, dockerd: Dockerd, ports: Callable[[], int]) -> Iterator[Tower]:
    """A tower on the Docker engine of these tests; whatever it started is stopped."""
    made = Tower(tmp_path, ports(), {"DOCKER_HOST": dockerd.socket})
    yield made
    made.run("down", "--yes")


def test_two_engines_live_and_die_apart(
    tower: Tower, dockerd: Dockerd, vllm_python: Path, smollm2: Path, ports: Callable[[], int]
) -> None:
    """up, status, a request to each; kill -9 inside one; change the other's flags; down leaves nothing."""
    content = tower_file(tower.folder, vllm_python, smollm2, ports)
    tower.write(content)
    said = tower.up()
    assert "load done in" in said
    assert "warm-up done in" in said
    assert tower.ok("status").count("ready") == 2

    for persona in ("thorough", "quick"):
        status, answer = tower.chat(persona)
        assert (status, answer["model"]) == (200, persona)

    # the warm-up has sent the prefix of 'thorough': even its first request hits
    _, answer = tower.chat("thorough")
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 100

    assert_prefix_cache_pays(tower, content)
    ids = containers(dockerd)
    assert "runs as it should" in tower.ok("diff")
    assert "runs already" in tower.ok("up")
    assert containers(dockerd) == ids

    # the small engine's process is killed inside its container: the other keeps answering, this one returns
    pid = dockerd.docker("inspect", "-f", "{{.State.Pid}}", "lmtower-small").stdout.strip()
    kill(int(pid))
    status, answer = tower.chat("quick")
    assert status in (200, 502, 503)
    assert status == 200 or isinstance(answer["error"]["code"], str)
    assert tower.chat("thorough")[0] == 200
    tower.until("the small engine returns", lambda: tower.chat("quick")[0] == 200)

    # other flags for one engine: only that one is replaced
    before = containers(dockerd)
    content["engines"]["small"]["context"] = 2048
    tower.write(content)
    refused = tower.run("up")
    assert refused.returncode == 2
    assert "replace" in refused.stderr
    tower.ok("up", "--yes")
    after = containers(dockerd)
    assert after["lmtower-real"] == before["lmtower-real"]
    assert after["lmtower-small"] != before["lmtower-small"]
    tower.until("both answer", lambda: tower.chat("quick")[0] == tower.chat("thorough")[0] == 200)

    # a persona edit touches no engine
    content["personas"]["quick"]["temperature"] = 0.5
    tower.write(content)
    tower.ok("up")
    assert containers(dockerd) == after

    assert "vLLM" in tower.ok("logs", "real")
    tower.ok("down", "--yes")
    assert containers(dockerd) == {}


def assert_prefix_cache_pays(tower: Tower, content: dict[str, Any]) -> None:
    """Cached tokens in usage, in our metrics and in vLLM's own counters; the time to the answer falls accordingly."""
    engine = f"http://127.0.0.1:{content['engines']['real']['port']}"
    before = counter(engine, "vllm:prefix_cache_hits_total")
    long = "The quick brown fox jumps over the lazy dog. " * 120
    begun = time.monotonic()
    _, cold = tower.chat("thorough", long, max_tokens=1)
    middle = time.monotonic()
    _, warm = tower.chat("thorough", long, max_tokens=1)
    cold_seconds, warm_seconds = middle - begun, time.monotonic() - middle
    prompt = warm["usage"]["prompt_tokens"]
    assert cold["usage"]["prompt_tokens_details"]["cached_tokens"] < prompt / 2
    assert warm["usage"]["prompt_tokens_details"]["cached_tokens"] > prompt * 0.95
    assert counter(engine, "vllm:prefix_cache_hits_total") - before > prompt * 0.95
    ours = counter(f"http://127.0.0.1:{tower.port + 1}", "lmtower_cached_tokens_total", 'persona="thorough"')
    assert ours > prompt * 0.95
    print(f"{prompt} tokens: {cold_seconds:.2f} s cold, {warm_seconds:.2f} s warm")
    assert warm_seconds < cold_seconds / 2


def counter(url: str, name: str, *labels: str) -> float:
    """Sum of a counter's series at /metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as reply:
        lines = reply.read().decode().splitlines()
    rows = [line for line in lines if line.startswith(name) and all(label in line for label in labels)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in rows)


def containers(dockerd: Dockerd) -> dict[str, str]:
    """Name -> id of every container, running or not."""
    rows = dockerd.docker("ps", "-a", "--no-trunc", "--format", "{{json .}}").stdout.splitlines()
    return {row["Names"]: row["ID"] for row in map(json.loads, rows)}


def kill(pid: int) -> None:
    """kill -9, as the kernel would for memory."""
    os.kill(pid, signal.SIGKILL)
