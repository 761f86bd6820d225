"""LaunchSpec: one engine process or container, written down completely before anything is touched.

``spec_hash`` covers what would make the running engine another one. It leaves out what only matters in the
moment of the start (the utilisation that passes vLLM's admission check, the Hugging Face token), so that a
second ``up`` on a node with other free memory changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

NAME_PREFIX = "lmtower-"
LABEL_ENGINE = "lmtower.engine"
LABEL_SPEC = "lmtower.spec"
LABEL_PORT = "lmtower.port"

_ONLY_AT_START = re.compile(r"--gpu-memory-utilization \S+ ?")
_KEY_VARIABLES = frozenset({"VLLM_API_KEY", "LMTOWER_ENGINE_KEY", "LLAMA_API_KEY"})


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder of the node (absolute path) or a named volume, seen by the engine at ``target``."""

    source: str
    target: str
    read_only: bool = False

    @property
    def is_volume(self) -> bool:
        """True for a named volume, which the node's Docker engine keeps."""
        return not self.source.startswith(("/", "~"))


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """Everything a driver needs. ``argv`` is the whole command; ``url`` is where the tower reaches the engine."""

    engine: str
    node: str
    runtime: str
    argv: tuple[str, ...] = ()
    image: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Further environment whose values are never printed, logged or rendered."""
    mounts: tuple[Mount, ...] = ()
    host: str = "127.0.0.1"
    port: int = 0
    devices: tuple[str, ...] = ()
    """GPUs: ``("all",)``, or indexes. Empty: none."""
    restart: str = "on-failure:3"
    ulimits: Mapping[str, int] = field(default_factory=dict)
    shm_bytes: int = 0
    health_path: str | None = "/health"
    """None: ready as soon as it runs (a Ray worker)."""
    role: str = ""
    """``head`` or ``worker`` where one engine spans nodes."""
    served_model: str = ""
    external_url: str = ""
    """Where somebody else runs it; then host and port do not count."""
    labels: Mapping[str, str] = field(default_factory=dict)
    spec_hash: str = ""

    @property
    def name(self) -> str:
        """Name of the container or process on its node."""
        return NAME_PREFIX + self.engine + ("-worker" if self.role == "worker" else "")

    @property
    def url(self) -> str:
        """Base URL, without a path."""
        if self.external_url:
            return self.external_url
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def api_key(self) -> str | None:
        """The engine key, for those who call the engine."""
        return next((value for name, value in self.secrets.items() if name in _KEY_VARIABLES), None)

    def sealed(self) -> LaunchSpec:
        """The spec with its hash and labels filled in."""
        digest = spec_hash(self)
        labels = {LABEL_ENGINE: self.engine, LABEL_SPEC: digest, LABEL_PORT: str(self.port)}
        return replace(self, spec_hash=digest, labels=labels)


def spec_hash(spec: LaunchSpec) -> str:
    """16 hex digits over everything that the running engine is made of; equal specs have equal hashes."""
    argv = _ONLY_AT_START.sub("", " ".join(spec.argv))
    keys = {name: value for name, value in spec.secrets.items() if name in _KEY_VARIABLES}
    parts = [
        spec.engine,
        spec.runtime,
        spec.role,
        spec.image,
        argv,
        sorted(spec.env.items()),
        sorted(keys.items()),
        sorted((mount.source, mount.target, mount.read_only) for mount in spec.mounts),
        spec.host,
        spec.port,
        list(spec.devices),
        spec.restart,
        sorted(spec.ulimits.items()),
        spec.shm_bytes,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
