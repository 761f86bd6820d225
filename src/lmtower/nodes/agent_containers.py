"""Our containers on this very node, through its local Docker socket; a node without Docker has none."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lmtower.engines.spec import LABEL_ENGINE
from lmtower.logs import get_logger
from lmtower.nodes.agent_gpu import Gpus

log = get_logger(__name__)

SOCKET = Path("/var/run/docker.sock")


class Containers:
    """Engines that run here as containers. ``gpus`` tells what memory each holds."""

    def __init__(self, client: Any, gpus: Callable[[], Gpus] = Gpus) -> None:
        self._client = client
        self._gpus = gpus

    @classmethod
    def of_this_machine(cls, gpus: Callable[[], Gpus] = Gpus) -> Containers:
        """Connected to the local Docker engine, or to nothing when there is none."""
        import docker
        from docker.errors import DockerException

        if not os.environ.get("DOCKER_HOST") and not SOCKET.exists():
            return cls(None, gpus)
        try:
            return cls(docker.DockerClient.from_env(timeout=10, version="auto"), gpus)
        except (DockerException, OSError) as error:
            log.warning("agent.docker_failed", error=str(error))
            return cls(None, gpus)

    def close(self) -> None:
        """Let go of the socket."""
        if self._client is not None:
            self._client.close()

    def owners(self) -> dict[str, str]:
        """Container id -> engine."""
        return {container.id: container.labels[LABEL_ENGINE] for container in self._list()}

    def running(self) -> Mapping[str, int]:
        """Engine -> GPU memory in bytes that its processes hold."""
        held = dict.fromkeys(self.owners().values(), 0)
        for gpu in self._gpus().gpus:
            for process in gpu.processes:
                if process.owner in held:
                    held[process.owner] += process.memory_bytes
        return held

    def stop(self, engine: str) -> bool:
        """Stop the engine's containers with little grace: memory is wanted now.

        Their restart policy is taken away first, which tells every tower that this was no crash.
        """
        found = [container for container in self._list() if container.labels[LABEL_ENGINE] == engine]
        done = [self._stopped(container) for container in found]
        return bool(done) and all(done)

    def _stopped(self, container: Any) -> bool:
        from docker.errors import DockerException

        try:
            container.update(restart_policy={"Name": "no"})
            container.stop(timeout=3)
        except (DockerException, OSError) as error:
            log.error("watchdog.stop_failed", container=container.id[:12], error=str(error))
            return False
        return True

    def _list(self) -> list[Any]:
        from docker.errors import DockerException

        if self._client is None:
            return []
        try:
            return list(self._client.containers.list(filters={"label": LABEL_ENGINE}))
        except (DockerException, OSError) as error:
            log.warning("agent.docker_failed", error=str(error))
            return []
