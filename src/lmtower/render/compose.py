"""One compose file per node. It needs nothing of ours on the node, and ``lmtower status`` knows its containers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmtower.engines.spec import LaunchSpec
from lmtower.errors import Refused
from lmtower.render.secrets import env_example, variable

_START_SECONDS = 1800  # weights of 120B take 10 to 15 minutes from a cold disk, and a first start compiles


def files(specs: Sequence[LaunchSpec]) -> dict[str, Any]:
    """``NODE/compose.yaml`` and ``NODE/.env.example`` for every node; engines start one after the other.

    Raises Refused for an engine that runs as a process.
    """
    found: dict[str, Any] = {}
    for node in dict.fromkeys(spec.node for spec in specs):
        here = [spec for spec in specs if spec.node == node]
        found[f"{node}/compose.yaml"] = project(here)
        example = env_example(here)
        if example:
            found[f"{node}/.env.example"] = example
    return found


def project(specs: Sequence[LaunchSpec]) -> dict[str, Any]:
    """The compose project of one node, ``specs`` in start order."""
    services: dict[str, Any] = {}
    before: str | None = None
    for spec in specs:
        name = spec.name.removeprefix("lmtower-")
        services[name] = _service(spec, before)
        before = name if spec.health_path else before
    volumes = {mount.source: {"name": mount.source} for spec in specs for mount in spec.mounts if mount.is_volume}
    return {"name": "lmtower", "services": services} | ({"volumes": volumes} if volumes else {})


def _service(spec: LaunchSpec, before: str | None) -> dict[str, Any]:
    if spec.image is None:
        raise Refused(
            f"engines.{spec.engine}: runs as a process on node {spec.node!r}; "
            f"compose needs a container. Set nodes.{spec.node}.driver: docker"
        )
    service: dict[str, Any] = {
        "image": spec.image,
        "container_name": spec.name,
        "entrypoint": [_escape(spec.argv[0])],
        "command": [_escape(word) for word in spec.argv[1:]],
        "network_mode": "host",
        "restart": spec.restart,
        "environment": _environment(spec),
        "labels": dict(spec.labels),
    }
    if spec.mounts:
        service["volumes"] = [f"{m.source}:{m.target}{':ro' if m.read_only else ''}" for m in spec.mounts]
    if spec.ulimits:
        service["ulimits"] = {name: {"soft": value, "hard": value} for name, value in spec.ulimits.items()}
    if spec.shm_bytes:
        service["shm_size"] = spec.shm_bytes
    if spec.devices:
        which = {"count": "all"} if spec.devices == ("all",) else {"device_ids": list(spec.devices)}
        device = {"driver": "nvidia", **which, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    if spec.health_path:
        service["healthcheck"] = _healthcheck(f"{spec.url}{spec.health_path}")
    if before is not None:
        # One engine at a time: two that load together see the same free memory, and both take it.
        service["depends_on"] = {before: {"condition": "service_healthy"}}
    return service


def _environment(spec: LaunchSpec) -> dict[str, str]:
    plain = {name: _escape(value) for name, value in spec.env.items()}
    return plain | {name: f"${{{variable(spec, name)}:?}}" for name in spec.secrets}


def _healthcheck(url: str) -> dict[str, Any]:
    # vLLM's image has both, llama.cpp's only curl
    probe = f"curl -fsS {url} || python3 -c 'import urllib.request; urllib.request.urlopen(\"{url}\", timeout=5)'"
    return {
        "test": ["CMD-SHELL", probe],
        "interval": "15s",
        "timeout": "10s",
        "retries": 4,
        "start_period": f"{_START_SECONDS}s",
    }


def _escape(text: str) -> str:
    """Compose replaces ``$NAME``; a doubled dollar is a plain one."""
    return text.replace("$", "$$")
