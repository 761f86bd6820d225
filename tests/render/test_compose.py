"""Compose files: complete, in start order, without secrets."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from lmtower.cli.app import main
from lmtower.engines import build_specs
from lmtower.errors import Refused
from lmtower.render import compose
from tests.e2e.clients import compose_program
from tests.engines.plans import FAMILIES, plan_of, tower_of
from tests.render.specs import OUTSIDE, containers, process, spanning

EXAMPLES = Path(__file__).parents[2] / "examples"


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


def accepted(folder: Path, project: Any, variables: str) -> Any:
    """The services as the real program reads them."""
    (folder / "compose.yaml").write_text(json.dumps(project))
    (folder / ".env").write_text(variables.replace("=\n", "=x\n"))
    command = [str(compose_program()), "--project-directory", str(folder), "config", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["services"]


@pytest.mark.tools
@pytest.mark.parametrize("family", FAMILIES)
def test_docker_compose_reads_what_the_driver_would_start(family: str, tmp_path: Path) -> None:
    """Of every family: the real program finds the same command, environment, limits and GPUs."""
    (spec,) = build_specs(plan_of(FAMILIES[family]), tower_of(FAMILIES[family]), OUTSIDE)
    files = compose.files([spec])
    (service,) = accepted(tmp_path, files["spark/compose.yaml"], files["spark/.env.example"]).values()
    assert [*service["entrypoint"], *service["command"]] == list(spec.argv)
    assert service["environment"] == {**spec.env, **dict.fromkeys(spec.secrets, "x")}
    assert (service["image"], service["container_name"]) == (spec.image, spec.name)
    assert (service["network_mode"], service["restart"]) == ("host", spec.restart)
    assert int(service["shm_size"]) == spec.shm_bytes
    assert {name: limit["hard"] for name, limit in service["ulimits"].items()} == dict(spec.ulimits)
    assert [(each["source"], each["target"]) for each in service["volumes"]] == [
        (mount.source, mount.target) for mount in spec.mounts
    ]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"], device["count"]) == ("nvidia", ["gpu"], -1)


@pytest.mark.tools
def test_docker_compose_accepts_ray_over_two_nodes_and_chosen_gpus(tmp_path: Path) -> None:
    """A head and a worker, each in its node's file; GPUs by number; a dollar that is no variable."""
    chosen = replace(containers()[0], devices=("0", "1"), argv=("vllm", "--x", "a$b"), secrets={})
    (service,) = accepted(tmp_path, compose.project([chosen]), "").values()
    assert service["command"] == ["--x", "a$$b"]  # its output can be read again: the dollar stays doubled
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] == ["0", "1"]
    specs = spanning()
    for path, project in compose.files(specs).items():
        if path.endswith("compose.yaml"):
            variables = compose.files(specs)[path.replace("compose.yaml", ".env.example")]
            (service,) = accepted(tmp_path, project, variables).values()
            assert "ray start" in " ".join([*service["entrypoint"], *service["command"]])


@pytest.mark.tools
@pytest.mark.parametrize("example", sorted(each.parent.name for each in EXAMPLES.glob("*/tower.yaml")))
def test_docker_compose_accepts_every_example(example: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What ``lmtower render compose`` writes for an example; one without containers is refused with the key to set."""
    tower = ["-c", str(EXAMPLES / example / "tower.yaml"), "--data-dir", str(tmp_path / "data")]
    status = main([*tower, "render", "compose", "--out", str(tmp_path)])
    if example == "laptop":
        assert status == 2
        assert "compose needs a container. Set nodes.local.driver: docker" in capsys.readouterr().err
        return
    assert status == 0
    for path in tmp_path.glob("*/compose.yaml"):
        project = YAML(typ="safe").load(path)
        services = accepted(path.parent, project, (path.parent / ".env.example").read_text())
        assert {name: each["command"] for name, each in services.items()} == {
            name: each["command"] for name, each in project["services"].items()
        }
