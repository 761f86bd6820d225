"""The rendered compose file on a real Docker engine: it starts what `up` would start, and `up` takes it over."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.clients import compose_program
from tests.integration.dockerd import IMAGE, Dockerd, host_mounts
from tests.integration.tower import Tower

pytestmark = [pytest.mark.dockerd, pytest.mark.tools]


@pytest.fixture
def tower(tmp_path: Path, dockerd: Dockerd, ports: Callable[[], int]) -> Iterator[Tower]:
    """Two embedded engines in containers and a persona of each."""
    made = Tower(tmp_path, ports(), {"DOCKER_HOST": dockerd.socket})
    engine = {
        "image": IMAGE,
        "mounts": host_mounts(),
        "context": 1024,
        "env": {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
    }
    made.write(
        {
            "nodes": {"box": {"driver": "docker", "hardware": "cpu", "models": str(tmp_path / "models")}},
            "engines": {
                "small": {"model": "bundled:smollm2", "port": ports(), **engine},
                "words": {"model": "bundled:wordllama", "port": ports(), **engine},
            },
            "personas": {"quick": {"engine": "small"}, "embed": {"engine": "words"}},
        }
    )
    yield made
    made.run("down", "--yes")


def test_compose_starts_the_engines_and_up_keeps_them(tower: Tower, dockerd: Dockerd) -> None:
    """Without lmtower on the node: one engine after the other, healthy; then a tower finds nothing to change."""
    tower.ok("render", "compose", "--out", str(tower.folder / "files"))
    compose = [str(compose_program()), "--project-directory", str(tower.folder / "files/box")]
    environ = {**os.environ, "DOCKER_HOST": dockerd.socket}
    up = subprocess.run(
        [*compose, "up", "--detach", "--wait"], env=environ, capture_output=True, text=True, check=False
    )
    assert up.returncode == 0, up.stderr
    began = [
        dockerd.docker("inspect", "-f", "{{.State.StartedAt}} {{.State.Health.Status}}", name).stdout.split()
        for name in ("lmtower-small", "lmtower-words")
    ]
    assert [health for _, health in began] == ["healthy", "healthy"]
    assert began[0][0] < began[1][0]

    ids = dockerd.docker("ps", "-q").stdout
    assert tower.ok("diff").count("runs as it should") == 2
    tower.up()
    assert tower.chat("quick")[0] == 200
    assert tower.post("/v1/embeddings", {"model": "embed", "input": "hello"})[0] == 200
    assert dockerd.docker("ps", "-q").stdout == ids
