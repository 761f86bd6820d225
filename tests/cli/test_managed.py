"""Prometheus and Grafana as managed containers: what they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmtower.cli import managed
from lmtower.config.types import Tower
from lmtower.errors import NodeError


def tower(**observability: str) -> Tower:
    """A tower that wants these."""
    return Tower.model_validate({"engines": {}, "personas": {}, "observability": observability})


def test_nothing_is_managed_by_default(tmp_path: Path) -> None:
    """No Docker is asked for, nothing is written."""
    assert managed.start(tower(prometheus="http://10.0.0.9:9090"), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_both_are_made_of_the_rendered_files(tmp_path: Path) -> None:
    """Rules, dashboards and provisioning are mounted where the programs look; both listen on this machine only."""
    prometheus, grafana = managed.parts(tower(prometheus="managed", grafana="managed"), tmp_path, "pw")
    assert {"prometheus/prometheus.yml", "prometheus/rules/lmtower.yaml"} == set(prometheus.files)
    assert prometheus.options()["volumes"] == {
        str(tmp_path / "prometheus"): {"bind": "/etc/prometheus", "mode": "ro"},
        "lmtower-prometheus": {"bind": "/prometheus", "mode": "rw"},
    }
    assert "--web.listen-address=127.0.0.1:9090" in prometheus.command
    assert grafana.environment["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert "grafana/dashboards/lmtower-overview.json" in grafana.files
    source = grafana.files["grafana/provisioning/datasources/lmtower.yaml"]["datasources"][0]
    assert source["url"] == "http://127.0.0.1:9090"


def test_grafana_alone_uses_the_given_prometheus(tmp_path: Path) -> None:
    """A Prometheus that runs elsewhere."""
    (grafana,) = managed.parts(tower(prometheus="http://10.0.0.9:9090", grafana="managed"), tmp_path, "pw")
    source = grafana.files["grafana/provisioning/datasources/lmtower.yaml"]["datasources"][0]
    assert source["url"] == "http://10.0.0.9:9090"


def test_parts_are_no_engines(tmp_path: Path) -> None:
    """Neither ``lmtower status`` nor the watchdog may take them for one."""
    for part in managed.parts(tower(prometheus="managed", grafana="managed"), tmp_path, "pw"):
        assert "lmtower.engine" not in part.options()["labels"]


def test_digest_changes_with_the_files(tmp_path: Path) -> None:
    """A changed admin address is a changed scrape configuration is a new container."""
    one = tower(prometheus="managed")
    moved = one.model_copy(update={"gateway": one.gateway.model_copy(update={"admin": "10.0.0.2:8081"})})
    first, second = (managed.parts(each, tmp_path, "pw")[0].digest for each in (one, moved))
    assert first != second
    assert first == managed.parts(one, tmp_path, "pw")[0].digest


def test_password_is_made_once_and_private(tmp_path: Path) -> None:
    """The same at the next start; nobody else may read it; it is in no repr."""
    password = managed.grafana_password(tmp_path)
    assert managed.grafana_password(tmp_path) == password
    assert (tmp_path / "grafana.password").stat().st_mode & 0o777 == 0o600
    assert password not in repr(managed.parts(tower(grafana="managed"), tmp_path, password))


def test_machine_without_docker_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to do instead."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    with pytest.raises(NodeError, match=r"Install docker\.io, or give the URL"):
        managed.start(tower(prometheus="managed"), tmp_path)


class FakeDocker:
    """As much of docker's client as is used."""

    def __init__(self, *, image: bool, old: Any = None) -> None:
        self.containers = self.images = self
        self.image, self.old = image, old
        self.done: list[str] = []

    def get(self, name: str) -> Any:
        """A container or an image."""
        from docker.errors import ImageNotFound, NotFound

        if name.startswith("lmtower-"):
            if self.old is None:
                raise NotFound("no")
            return self.old
        if not self.image:
            raise ImageNotFound("no")
        return object()

    def pull(self, image: str) -> None:
        """Take note."""
        self.done.append(f"pull {image}")

    def create(self, **options: Any) -> FakeDocker:
        """Take note."""
        self.done.append(f"create {options['name']}")
        return self

    def start(self) -> None:
        """Take note."""
        self.done.append("start")


class Old:
    """A container that is there."""

    def __init__(self, digest: str, status: str) -> None:
        self.labels = {managed.LABEL_HASH: digest}
        self.status = status
        self.removed = False

    def remove(self, force: bool) -> None:
        """Take note."""
        self.removed = force


@pytest.mark.parametrize(
    ("digest", "status", "kept"), [("same", "running", True), ("same", "exited", False), ("x", "running", False)]
)
def test_only_what_changed_or_ended_is_replaced(digest: str, status: str, kept: bool, tmp_path: Path) -> None:
    """A second ``up`` does nothing."""
    (part,) = managed.parts(tower(prometheus="managed"), tmp_path, "pw")
    old = Old(part.digest if digest == "same" else digest, status)
    client = FakeDocker(image=True, old=old)
    assert managed._ensure(client, part) == "prometheus on http://127.0.0.1:9090"
    assert old.removed is not kept
    assert client.done == ([] if kept else ["create lmtower-prometheus", "start"])


def test_missing_image_is_pulled(tmp_path: Path) -> None:
    """The first start on a machine."""
    (part,) = managed.parts(tower(prometheus="managed"), tmp_path, "pw")
    client = FakeDocker(image=False)
    managed._ensure(client, part)
    assert client.done[0] == f"pull {managed.PROMETHEUS_IMAGE}"
