"""The docker driver: one container per engine, on this machine's Docker engine or over ``ssh://``.

Containers use the host's network, so an engine is reached at its node's private address without a proxy, and NCCL
finds the fast card. The restart policy is ``on-failure``: a crashed engine returns, but after a reboot nothing
starts by itself, because engines must be started one at a time (``lmtower up`` does).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from lmtower.engines.failures import recognise
from lmtower.engines.spec import LABEL_ENGINE, LABEL_PORT, LABEL_SPEC, LaunchSpec
from lmtower.errors import EngineError, NodeAway, NodeError
from lmtower.nodes.drivers.base import VERSION_PROGRAM, Observed, Progress, Report, parse_version
from lmtower.nodes.fetch import fetch_command, needs_weights, parse_progress
from lmtower.nodes.reach import explain_unreachable, occupant
from lmtower.nodes.tunnel import DOCKER_SOCKET, Tunnel

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

T = TypeVar("T")
_TIMEOUT_SECONDS = 60
_OBSERVE_SECONDS = 15
_LOOK_SECONDS = 0.5
_LOG_OPTIONS = {"max-size": "50m", "max-file": "3"}
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class DockerDriver:
    """Containers of one node. Connects when first needed, and again after the link was cut."""

    def __init__(self, node: str, address: str = "local", socket: str | None = None) -> None:
        self.node = node
        self._address = address
        self._socket = socket
        self._client: DockerClient | None = None
        self._tunnel = Tunnel(address) if address.startswith("ssh://") else None
        self._connecting = asyncio.Lock()

    async def observe(self) -> tuple[Observed, ...]:
        """All containers with our label, running or not."""
        return await self._ask(
            lambda client: tuple(self._observed(each) for each in _ours(client)), timeout_seconds=_OBSERVE_SECONDS
        )

    async def start(self, spec: LaunchSpec) -> None:
        """Create and start the container; the image is pulled when it is missing. Raises EngineError, NodeError."""
        await self.stop(spec.name)
        if not await self._ask(lambda client: _has_image(client, spec.image or "")):
            await self._pull_image(spec, spec.image or "", lambda _: None)
        await self._ask(lambda client: _check_architecture(client, spec))
        await self._ask(lambda client: _run(client, spec))

    async def stop(self, name: str, grace_seconds: float = 30.0) -> None:
        """SIGTERM, SIGKILL after the grace, then remove the container. Volumes stay."""

        def act(client: DockerClient) -> None:
            for container in client.containers.list(all=True, filters={"name": f"^/?{name}$"}):
                with contextlib.suppress(_errors().NotFound):
                    container.stop(timeout=int(grace_seconds))
                    container.remove(force=True)

        await self._ask(act)

    async def logs(self, name: str, lines: int = 200) -> str:
        """Standard output and error together."""

        def act(client: DockerClient) -> str:
            try:
                raw: bytes = client.containers.get(name).logs(tail=lines)
            except _errors().NotFound:
                return ""
            return raw.decode("utf-8", "replace")

        return await self._ask(act)

    async def follow(self, name: str, lines: int = 200) -> AsyncIterator[str]:
        """Lines as they come, until the container ends. Asked for again and again: a stream over ssh cannot be left."""
        seen = ""
        while True:
            since = seen

            def act(client: DockerClient, since: str = since) -> tuple[str, bool]:
                container = client.containers.get(name)
                tail: dict[str, Any] = {"since": _unix_time(since)} if since else {"tail": lines}
                raw: bytes = container.logs(timestamps=True, **tail)
                return raw.decode("utf-8", "replace"), bool(container.attrs["State"].get("Running"))

            text, running = await self._ask(act)
            for row in text.splitlines():
                stamp, _, line = row.partition(" ")
                if stamp > seen:
                    seen = stamp
                    yield line
            if not running:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    async def pull(self, spec: LaunchSpec, report: Report) -> None:
        """Fetch image and weights with progress. Raises EngineError that says what is missing or full."""
        if not await self._ask(lambda client: _has_image(client, spec.image or "")):
            await self._pull_image(spec, spec.image or "", report)
        if needs_weights(spec):
            await self._fetch_weights(spec, report)

    async def _pull_image(self, spec: LaunchSpec, image: str, report: Report) -> None:
        def act(client: DockerClient) -> None:
            repository, tag = _split(image)
            layers: dict[str, tuple[int, int]] = {}
            failed: str | None = None
            # read to its end even after an error, or the connection stays open
            for event in client.api.pull(repository, tag=tag, stream=True, decode=True):
                failed = str(event["error"]) if "error" in event else failed
                detail = event.get("progressDetail") or {}
                if event.get("status") == "Downloading" and detail.get("total"):
                    layers[str(event.get("id"))] = (int(detail.get("current", 0)), int(detail["total"]))
                    done, total = (sum(column) for column in zip(*layers.values(), strict=True))
                    report(Progress(f"image {image}", done, total))
            if failed is not None:
                raise EngineError(_image_error(spec, self.node, failed))

        try:
            await self._ask(act, timeout_seconds=None)
        except NodeError as error:
            raise EngineError(_image_error(spec, self.node, str(error.__cause__ or error))) from error

    async def _fetch_weights(self, spec: LaunchSpec, report: Report) -> None:
        """Run the fetch program in a container of its own, with the engine's image and volumes."""
        what = f"weights {spec.served_model}"
        command = fetch_command("python3", spec.served_model)
        helper = replace(spec, engine=f"{spec.engine}-fetch", argv=command, devices=(), restart="no", labels={})
        await self.stop(helper.name)
        await self._ask(lambda client: _run(client, helper))
        try:
            async for line in self.follow(helper.name):
                if (at := parse_progress(line)) is not None:
                    report(Progress(what, *at))
            status = await self._ask(lambda client: int(client.containers.get(helper.name).wait()["StatusCode"]))
            if status:
                failure = recognise(await self.logs(helper.name), status, engine=spec.engine)
                raise EngineError(f"engine {spec.engine!r}: {failure}")
        finally:
            await self.stop(helper.name, grace_seconds=0)

    async def version(self, image: str) -> str | None:
        """The image's own Python is asked, in a container without GPUs. Images that are not there are not pulled."""

        def act(client: DockerClient) -> str | None:
            if not _has_image(client, image):
                return None
            command = ["-c", VERSION_PROGRAM]
            asked = client.containers.create(image, command, entrypoint=["python3"], network_mode="none")
            try:
                asked.start()
                asked.wait()
                out: bytes = asked.logs(stderr=False)
            except _errors().APIError:  # no Python in it, or none that can run here
                return None
            finally:
                asked.remove(force=True)
            return parse_version(out.decode("utf-8", "replace"))

        return await self._ask(act)

    async def occupant(self, port: int) -> str:
        """The node is asked, over ssh where it is another machine."""
        return await occupant(self._address, port)

    async def close(self) -> None:
        """Close the connection; containers stay."""
        if self._client is not None:
            await asyncio.to_thread(self._client.close)
            self._client = None
        if self._tunnel is not None:
            await self._tunnel.close()

    async def _ask(self, act: Callable[[DockerClient], T], timeout_seconds: float | None = 2 * _TIMEOUT_SECONDS) -> T:
        """Run a blocking call off the loop; whatever Docker or the link says becomes an error of ours.

        The timeout is ours as well: a read over a cut ssh link has none, and would wait for ever.
        """
        import requests
        import urllib3

        errors = _errors()
        # what a connection says that breaks in the middle of an answer, the frame of a log line included
        broken = (errors.DockerException, requests.RequestException, urllib3.exceptions.HTTPError, struct.error)
        async with self._connecting:
            if self._client is None or (self._tunnel is not None and not self._tunnel.alive):
                self._client = await self._connect()
            client = self._client
        try:
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.to_thread(act, client)
        except errors.APIError as error:
            message = str(error.explanation or error)
            failure = recognise(message, None)
            said = str(failure) if failure.kind != "unknown" else message
            raise NodeError(f"Docker on node {self.node!r} refused: {said}") from error
        except (*broken, OSError, TimeoutError) as error:
            self._client = None
            raise await self._unreachable(error) from error

    async def _connect(self) -> DockerClient:
        import docker
        import requests

        try:
            base = self._socket if self._tunnel is None else await self._tunnel.open()
            await asyncio.to_thread(_knock, base or f"unix://{DOCKER_SOCKET}")
            return await asyncio.to_thread(
                lambda: docker.DockerClient(base_url=base, version="auto", timeout=_TIMEOUT_SECONDS)
            )
        except (docker.errors.DockerException, requests.RequestException, OSError) as error:
            raise await self._unreachable(error) from error

    async def _unreachable(self, error: Exception) -> NodeAway:
        return NodeAway(await explain_unreachable(self.node, self._address, str(error)))

    def _observed(self, container: Container) -> Observed:
        state: dict[str, Any] = container.attrs["State"]
        labels: dict[str, str] = container.labels
        running = bool(state.get("Running"))
        return Observed(
            name=container.name or "",
            engine=labels.get(LABEL_ENGINE, ""),
            node=self.node,
            spec_hash=labels.get(LABEL_SPEC, ""),
            running=running and not state.get("Restarting"),
            exit_code=None if running and not state.get("Restarting") else state.get("ExitCode"),
            out_of_memory=bool(state.get("OOMKilled")),
            port=int(labels.get(LABEL_PORT, "0")),
            pid=state.get("Pid") or None,
            returns=bool(state.get("Restarting")),
            restarts=int(container.attrs.get("RestartCount", 0)),
            restart=container.attrs["HostConfig"]["RestartPolicy"]["Name"],
        )


def _errors() -> Any:
    import docker.errors

    return docker.errors


def _knock(base: str) -> None:
    """Open the socket once ourselves: the docker package leaves its own open when that fails. Raises OSError."""
    if base.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as knock:
            knock.connect(base.removeprefix("unix://"))


def _ours(client: DockerClient) -> list[Container]:
    found: list[Container] = client.containers.list(all=True, filters={"label": LABEL_ENGINE}, ignore_removed=True)
    return found


def _has_image(client: DockerClient, image: str) -> bool:
    try:
        client.images.get(image)
    except _errors().ImageNotFound:
        return False
    return True


def _check_architecture(client: DockerClient, spec: LaunchSpec) -> None:
    built = client.images.get(spec.image or "").attrs.get("Architecture")
    machine = client.info().get("Architecture", "")
    if built and built != _ARCHITECTURES.get(machine, machine):
        raise EngineError(
            f"engine {spec.engine!r}: image {spec.image!r} was built for {built}, but node {spec.node!r} is "
            f"{_ARCHITECTURES.get(machine, machine)}. Choose another image"
        )


def _run(client: DockerClient, spec: LaunchSpec) -> None:
    client.containers.create(**container_options(spec)).start()


def container_options(spec: LaunchSpec) -> dict[str, Any]:
    """The spec as arguments of ``containers.create``. Importing the package is all that it needs of Docker."""
    from docker.types import DeviceRequest, LogConfig, Ulimit
    from docker.types import Mount as DockerMount

    policy, _, times = spec.restart.partition(":")
    options: dict[str, Any] = {
        "image": spec.image,
        "entrypoint": [spec.argv[0]],
        "command": list(spec.argv[1:]),
        "name": spec.name,
        "environment": {**spec.env, **spec.secrets},
        "labels": dict(spec.labels),
        "network_mode": "host",
        "volumes": {each.source: {"bind": each.target, "mode": "rw"} for each in spec.mounts if not each.read_only},
        # A missing folder of a volume is made anew; what is only read must be there, or it would look empty.
        "mounts": [
            DockerMount(each.target, each.source, type="bind", read_only=True) for each in spec.mounts if each.read_only
        ],
        "ulimits": [Ulimit(name=name, soft=value, hard=value) for name, value in spec.ulimits.items()],
        "log_config": LogConfig(type=LogConfig.types.JSON, config=_LOG_OPTIONS),
        "restart_policy": {"Name": policy, **({"MaximumRetryCount": int(times)} if times else {})},
        "detach": True,
    }
    if spec.shm_bytes:
        options["shm_size"] = spec.shm_bytes
    if spec.devices:
        chosen = {"count": -1} if spec.devices == ("all",) else {"device_ids": list(spec.devices)}
        options["device_requests"] = [DeviceRequest(capabilities=[["gpu"]], **chosen)]
    return options


def _unix_time(stamp: str) -> int:
    """The second of a timestamp of Docker's (RFC 3339 with nanoseconds); what was seen of it is skipped."""
    return int(datetime.fromisoformat(stamp[:19] + "+00:00").timestamp())


def _split(image: str) -> tuple[str, str]:
    name, colon, tag = image.rpartition(":")
    return (name, tag) if colon and "/" not in tag else (image, "latest")


def _image_error(spec: LaunchSpec, node: str, said: str) -> str:
    failure = recognise(said, None)
    if failure.kind in ("disk_full", "registry_login", "registry_limit", "wrong_architecture"):
        return f"engine {spec.engine!r} on node {node!r}, image {spec.image!r}: {failure}"
    return (
        f"engine {spec.engine!r}: image {spec.image!r} is not on node {node!r} and could not be pulled: {said[:300]}. "
        f"Check engines.{spec.engine}.image and the node's network, or load it there: docker load"
    )
