"""Compose files: complete, in start order, without secrets."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmtower.errors import Refused
from lmtower.render import compose
from tests.render.specs import containers, process


def services() -> dict[str, Any]:
    """Services of the node."""
    found: dict[str, Any] = compose.files(containers())["spark/compose.yaml"]["services"]
    return found


def test_each_node_has_its_own_file() -> None:
    """Replicas on two nodes make two projects."""
    first, *_ = containers()
    files = compose.files([first, replace(first, node="spark2")])
    assert {path for path in files if path.endswith("compose.yaml")} == {"spark/compose.yaml", "spark2/compose.yaml"}


def test_service_is_the_whole_launch_spec() -> None:
    """Image, command, mounts, limits, GPUs, labels: what the docker driver would start."""
    spec = containers()[0]
    service = services()["nemotron"]
    assert (service["image"], service["container_name"]) == (spec.image, "lmtower-nemotron")
    assert [*service["entrypoint"], *service["command"]] == list(spec.argv)
    assert service["network_mode"] == "host"
    assert service["volumes"] == ["lmtower-models:/models", "lmtower-caches:/caches"]
    assert service["ulimits"]["memlock"] == {"soft": -1, "hard": -1}
    assert service["shm_size"] == spec.shm_bytes
    assert service["labels"] == dict(spec.labels)
    assert service["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    ]


def test_engines_start_one_after_the_other() -> None:
    """Each waits for the health of the one before: two that load together take the same memory."""
    waits = {name: list(service.get("depends_on", {})) for name, service in services().items()}
    assert waits == {"nemotron": [], "eyes": ["nemotron"], "coder": ["eyes"]}
    assert services()["eyes"]["depends_on"]["nemotron"] == {"condition": "service_healthy"}


def test_secrets_are_asked_for_not_written() -> None:
    """Keys come from the environment; a missing one stops compose with a message."""
    files = compose.files(containers())
    assert "secret" not in json.dumps(files)
    assert services()["nemotron"]["environment"]["VLLM_API_KEY"] == "${NEMOTRON_VLLM_API_KEY:?}"
    assert files["spark/.env.example"] == "CODER_VLLM_API_KEY=\nEYES_VLLM_API_KEY=\nHF_TOKEN=\nNEMOTRON_VLLM_API_KEY=\n"


def test_named_volumes_keep_the_names_of_the_driver() -> None:
    """Weights that ``lmtower up`` fetched are found by compose, and the other way round."""
    volumes = compose.files(containers())["spark/compose.yaml"]["volumes"]
    assert volumes == {"lmtower-models": {"name": "lmtower-models"}, "lmtower-caches": {"name": "lmtower-caches"}}


def test_dollars_stay_dollars() -> None:
    """Compose would replace ``$X`` in a chat template's argument."""
    spec = replace(containers()[0], argv=("vllm", "--x", "a$b"), env={"Y": "$HOME"})
    service = compose.project([spec])["services"]["nemotron"]
    assert service["command"] == ["--x", "a$$b"]
    assert service["environment"]["Y"] == "$$HOME"


def test_chosen_gpus_are_named() -> None:
    """Two GPUs of a server."""
    service = compose.project([replace(containers()[0], devices=("0", "1"))])["services"]["nemotron"]
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] == ["0", "1"]


def test_worker_without_health_is_not_waited_for() -> None:
    """A Ray worker has no health check of its own."""
    head, other, _ = containers()
    project = compose.project([replace(head, role="worker", health_path=None), other])
    assert "healthcheck" not in project["services"]["nemotron-worker"]
    assert "depends_on" not in project["services"]["eyes"]


def test_process_is_refused() -> None:
    """The message says which key of the tower file to change."""
    with pytest.raises(Refused, match=r"Set nodes\.local\.driver: docker"):
        compose.files([process()])


@pytest.mark.tools
def test_docker_compose_accepts_the_file(tmp_path: Path) -> None:
    """The real parser reads it and finds the same commands."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    files = compose.files(containers())
    (tmp_path / "compose.yaml").write_text(json.dumps(files["spark/compose.yaml"]))
    (tmp_path / ".env").write_text(files["spark/.env.example"].replace("=\n", "=x\n"))
    done = subprocess.run(
        [docker, "compose", "config", "--format", "json"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["services"]["nemotron"]["command"] == list(containers()[0].argv[1:])
