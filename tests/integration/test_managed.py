"""``prometheus: managed`` on a real Docker engine: it comes with ``up`` and goes with ``down``."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmtower.cli import managed
from tests.fakes.engine import FakeEngine
from tests.integration.dockerd import Dockerd
from tests.integration.observed import Prometheus
from tests.integration.tower import Tower

pytestmark = [pytest.mark.dockerd, pytest.mark.tools]


def image_tar(program: Path) -> bytes:
    """A root file system with nothing but Prometheus and the libraries that it needs."""
    linked = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
    libraries = [word for line in linked.splitlines() for word in line.split() if word.startswith("/")]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(program, "bin/prometheus")
        for library in libraries:
            tar.add(Path(library).resolve(), library.lstrip("/"))
        for folder in ("etc", "tmp", "prometheus"):
            info = tarfile.TarInfo(folder)
            info.type, info.mode = tarfile.DIRTYPE, 0o777
            tar.addfile(info)
    return buffer.getvalue()


@pytest.fixture
def tower(tmp_path: Path, dockerd: Dockerd, ports: Callable[[], int]) -> Iterator[tuple[Tower, FakeEngine]]:
    """A tower that wants Prometheus managed; its image is there under the official name."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    entry = ["--change", 'ENTRYPOINT ["/bin/prometheus"]']
    dockerd.docker("import", *entry, "-", managed.PROMETHEUS_IMAGE, stdin=image_tar(Path(program)))
    made = Tower(tmp_path, ports(), {"DOCKER_HOST": dockerd.socket})
    with FakeEngine() as fake:
        made.write(
            {
                "engines": {"fake": {"url": fake.url, "model": "fake-model"}},
                "personas": {"plan": {"engine": "fake"}},
                "observability": {"prometheus": "managed"},
            }
        )
        yield made, fake
        made.run("down", "--yes")


def test_prometheus_comes_with_up_and_goes_with_down(tower: tuple[Tower, FakeEngine], dockerd: Dockerd) -> None:
    """It scrapes the tower and its engine by itself; ``down`` removes it."""
    made, _ = tower
    made.up()
    prometheus = Prometheus(f"http://127.0.0.1:{managed.PROMETHEUS_PORT}")
    try:
        healthy = {"lmtower": "up", "external/fake": "up"}
        prometheus.until("targets", lambda: prometheus.up() == healthy, 90)
    finally:
        prometheus.close()
    before = dockerd.docker("ps", "-q", "--filter", f"label={managed.LABEL_PART}").stdout
    assert before.strip()
    made.ok("down", "--yes")
    assert not dockerd.docker("ps", "-aq", "--filter", f"label={managed.LABEL_PART}").stdout.strip()
