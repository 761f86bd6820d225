"""``observability: managed`` on a real Docker engine: it comes with ``up`` and goes with ``down``."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from lmtower.cli import managed
from tests.fakes.engine import FakeEngine
from tests.integration.dockerd import Dockerd
from tests.integration.observed import Prometheus
from tests.integration.tower import Tower

yaml = YAML(typ="safe")
pytestmark = [pytest.mark.dockerd, pytest.mark.tools]


def image_tar(program: Path) -> bytes:
    """A root file system with nothing but one program and the libraries that it needs."""
    linked = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    libraries = [word for line in linked.splitlines() for word in line.split() if word.startswith("/")]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(program.resolve(), f"bin/{program.name}")
        for library in libraries:
            tar.add(Path(library).resolve(), library.lstrip("/"))
        for folder in ("etc", "tmp", "prometheus"):
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o777
            tar.addfile(info)
    return buffer.getvalue()


@pytest.fixture
def tower(tmp_path: Path, dockerd: Dockerd, ports: Callable[[], int]) -> Iterator[tuple[Tower, FakeEngine]]:
    """A tower that wants both managed; their images are there under the official names, Grafana's with a stand-in."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    entry = ["--change", 'ENTRYPOINT ["/bin/prometheus"]']
    dockerd.docker("import", *entry, "-", managed.PROMETHEUS_IMAGE, stdin=image_tar(Path(program)))
    sleep = shutil.which("sleep")
    assert sleep is not None
    entry = ["--change", 'ENTRYPOINT ["/bin/sleep", "3600"]']
    dockerd.docker("import", *entry, "-", managed.GRAFANA_IMAGE, stdin=image_tar(Path(sleep)))
    made = Tower(tmp_path, ports(), {"DOCKER_HOST": dockerd.socket})
    with FakeEngine() as fake:
        made.write(
            {
                "engines": {"fake": {"url": fake.url, "model": "fake-model"}},
                "personas": {"plan": {"engine": "fake"}},
                "observability": {"prometheus": "managed", "grafana": "managed"},
            }
        )
        yield made, fake
        made.run("down", "--yes")


def test_both_come_with_up_and_go_with_down(tower: tuple[Tower, FakeEngine], dockerd: Dockerd) -> None:
    """Prometheus scrapes the tower and its engine by itself, Grafana has everything mounted; ``down`` removes them."""
    made, _ = tower
    printed = made.up()
    prometheus = Prometheus(f"http://127.0.0.1:{managed.PROMETHEUS_PORT}")
    try:
        healthy = {"lmtower": "up", "external/fake": "up"}
        prometheus.until("targets", lambda: prometheus.up() == healthy, 90)
        rules = prometheus.get("/api/v1/rules")["groups"]
    finally:
        prometheus.close()
    assert {group["name"] for group in rules} == {"lmtower-recordings", "lmtower-alerts"}
    assert f"grafana on http://127.0.0.1:{managed.GRAFANA_PORT}" in printed + made.log()
    found = json.loads(dockerd.docker("inspect", "lmtower-grafana").stdout)[0]
    check_grafana(found, (made.folder / "data/grafana.password").read_text().strip())
    ids = dockerd.docker("ps", "-q", "--filter", f"label={managed.LABEL_PART}").stdout.split()
    made.ok("up", "--detach", "--yes")  # as they should be: left alone
    assert dockerd.docker("ps", "-q", "--filter", f"label={managed.LABEL_PART}").stdout.split() == ids
    assert len(ids) == 2
    made.ok("down", "--yes")
    assert not dockerd.docker("ps", "-aq", "--filter", f"label={managed.LABEL_PART}").stdout.strip()


def check_grafana(container: dict[str, Any], password: str) -> None:
    """Running, reachable from this machine only, with provisioning and dashboards where its files say that they are."""
    assert container["State"]["Running"]
    environment = dict(pair.split("=", 1) for pair in container["Config"]["Env"])
    assert environment["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert environment["GF_SECURITY_ADMIN_PASSWORD"] == password
    mounts = {mount["Destination"]: mount for mount in container["Mounts"]}
    provisioning = Path(mounts["/etc/grafana/provisioning"]["Source"])
    source = yaml.load((provisioning / "datasources/lmtower.yaml").read_text())["datasources"][0]
    assert source["url"] == f"http://127.0.0.1:{managed.PROMETHEUS_PORT}"
    (provider,) = yaml.load((provisioning / "dashboards/lmtower.yaml").read_text())["providers"]
    boards = mounts[provider["options"]["path"]]
    assert not boards["RW"]
    files = sorted(Path(boards["Source"]).glob("*.json"))
    assert [json.loads(file.read_text())["uid"] for file in files] == [
        "lmtower-clients", "lmtower-engines", "lmtower-overview", "lmtower-prefix-cache",
    ]  # fmt: skip
    home = environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(boards["Source"], Path(home).name).exists()
    assert all(file.stat().st_mode & 0o004 for file in files)  # Grafana runs as a user of its own
