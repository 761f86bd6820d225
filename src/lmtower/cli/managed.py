"""Prometheus and Grafana as containers on the tower's own machine, when the tower file says ``managed``.

They use the host's network and listen on this machine only. A container whose files, image or options changed is
replaced; one that is as it should be is left alone. They carry a label of their own, so they are no engines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmtower.cli.kept import kept_secret
from lmtower.config.types import Tower
from lmtower.errors import NodeError

LABEL_PART = "lmtower.part"
LABEL_HASH = "lmtower.part-hash"
PROMETHEUS_IMAGE = "prom/prometheus:v3.5.0"
GRAFANA_IMAGE = "grafana/grafana:11.6.0"
PROMETHEUS_PORT = 9090
GRAFANA_PORT = 3000
MANAGED = "managed"


@dataclass(frozen=True, slots=True)
class Part:
    """One container. ``folders`` are read-only mounts (path on this machine -> path inside), ``volume`` keeps data."""

    name: str
    image: str
    command: tuple[str, ...]
    port: int
    folders: Mapping[str, str]
    volume: tuple[str, str]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def digest(self) -> str:
        """Changes with anything that the container is made of."""
        made_of = [self.image, self.command, dict(self.folders), self.volume, dict(self.environment), dict(self.files)]
        return hashlib.sha256(json.dumps(made_of, default=str).encode()).hexdigest()[:16]

    def options(self) -> dict[str, Any]:
        """Arguments of docker's ``containers.create``."""
        folders = {path: {"bind": inside, "mode": "ro"} for path, inside in self.folders.items()}
        return {
            "image": self.image,
            "command": list(self.command),
            "name": f"lmtower-{self.name}",
            "environment": dict(self.environment),
            "labels": {LABEL_PART: self.name, LABEL_HASH: self.digest},
            "network_mode": "host",
            "restart_policy": {"Name": "unless-stopped"},
            "volumes": folders | {self.volume[0]: {"bind": self.volume[1], "mode": "rw"}},
        }


def parts(tower: Tower, folder: Path, password: str) -> tuple[Part, ...]:
    """What the tower file wants to be managed. ``folder`` is where the rendered files go."""
    found = []
    wanted = tower.observability
    if wanted.prometheus == MANAGED:
        from lmtower.telemetry import prometheus

        found.append(
            Part(
                "prometheus",
                PROMETHEUS_IMAGE,
                (
                    "--config.file=/etc/prometheus/prometheus.yml",
                    "--storage.tsdb.path=/prometheus",
                    "--storage.tsdb.retention.time=90d",
                    f"--web.listen-address=127.0.0.1:{PROMETHEUS_PORT}",
                    "--enable-feature=exemplar-storage",
                ),
                PROMETHEUS_PORT,
                {str(folder / "prometheus"): "/etc/prometheus"},
                ("lmtower-prometheus", "/prometheus"),
                files={f"prometheus/{path}": content for path, content in prometheus.files(tower).items()},
            )
        )
    if wanted.grafana == MANAGED:
        from lmtower.telemetry import grafana

        known = wanted.prometheus if wanted.prometheus not in (None, MANAGED) else None
        url = known or f"http://127.0.0.1:{PROMETHEUS_PORT}"
        home = folder / "grafana"
        found.append(
            Part(
                "grafana",
                GRAFANA_IMAGE,
                (),
                GRAFANA_PORT,
                {
                    str(home / "provisioning"): "/etc/grafana/provisioning",
                    str(home / "dashboards"): grafana.DASHBOARD_FOLDER,
                },
                ("lmtower-grafana", "/var/lib/grafana"),
                environment={
                    "GF_SERVER_HTTP_ADDR": "127.0.0.1",
                    "GF_SERVER_HTTP_PORT": str(GRAFANA_PORT),
                    "GF_SECURITY_ADMIN_PASSWORD": password,
                    "GF_ANALYTICS_REPORTING_ENABLED": "false",
                    "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
                    "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": f"{grafana.DASHBOARD_FOLDER}/lmtower-overview.json",
                },
                files={f"grafana/{path}": content for path, content in grafana.files(url).items()},
            )
        )
    return tuple(found)


def start(tower: Tower, data_dir: Path) -> list[str]:
    """Start or replace what is to be managed; lines that tell where it answers. Raises NodeError without Docker."""
    if MANAGED not in (tower.observability.prometheus, tower.observability.grafana):
        return []
    folder = (data_dir / "observability").resolve()
    made = parts(tower, folder, grafana_password(data_dir))
    for part in made:
        _write(part, folder)
    client = _docker()
    try:
        return [_ensure(client, part) for part in made]
    finally:
        client.close()


def stop() -> list[str]:
    """Remove our parts; their data stays in volumes. Quiet where there is no Docker."""
    try:
        client = _docker()
    except NodeError:
        return []
    try:
        found = client.containers.list(all=True, filters={"label": LABEL_PART})
        for container in found:
            container.remove(force=True)
        return [f"{container.labels[LABEL_PART]} stopped" for container in found]
    finally:
        client.close()


def grafana_password(data_dir: Path) -> str:
    """The password of Grafana's user ``admin``; made once, readable by its owner only."""
    return kept_secret(data_dir / "grafana.password", 18)


def _write(part: Part, folder: Path) -> None:
    from lmtower.cli.files import as_text

    for path, content in part.files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(as_text(path, content, "Written by lmtower from the tower file."), "utf-8")
    for each in (folder, *folder.rglob("*")):
        each.chmod(0o755 if each.is_dir() else 0o644)  # the programs inside run as users of their own


def _docker() -> Any:
    import docker
    from docker.errors import DockerException

    try:
        return docker.DockerClient.from_env(timeout=600, version="auto")
    except (DockerException, OSError) as exc:
        raise NodeError(
            f"observability: managed needs a Docker engine on this machine: {exc}. "
            "Install docker.io, or give the URL of a Prometheus and a Grafana that run"
        ) from exc


def _ensure(client: Any, part: Part) -> str:
    from docker.errors import APIError, ImageNotFound, NotFound

    where = f"{part.name} on http://127.0.0.1:{part.port}"
    try:
        try:
            old = client.containers.get(f"lmtower-{part.name}")
        except NotFound:
            old = None
        if old is not None and old.labels.get(LABEL_HASH) == part.digest and old.status == "running":
            return where
        try:
            client.images.get(part.image)
        except ImageNotFound:
            client.images.pull(part.image)
        if old is not None:
            old.remove(force=True)
        client.containers.create(**part.options()).start()
    except (APIError, OSError) as exc:
        raise NodeError(f"observability.{part.name}: Docker refused to start it: {exc}") from exc
    return where
