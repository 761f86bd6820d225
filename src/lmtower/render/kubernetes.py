"""Engines as Kubernetes manifests: one Deployment, Service and claims per engine, the tower, and monitors for both.

Secrets are referred to, never written: make ``lmtower-engines`` (keys of engines) and ``lmtower-tower`` (the tower
file and its prompts) before applying; docs/kubernetes.md has the commands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmtower.engines.spec import LaunchSpec
from lmtower.errors import Refused
from lmtower.render.secrets import variable

ENGINES_SECRET = "lmtower-engines"
TOWER_SECRET = "lmtower-tower"
_GPU = "nvidia.com/gpu"
_PART_OF = {"app.kubernetes.io/part-of": "lmtower"}
Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a cluster needs to know that no tower file says."""

    tower_image: str
    namespace: str = "lmtower"
    models_size: str = "200Gi"
    caches_size: str = "20Gi"
    storage_class: str | None = None


def files(specs: Sequence[LaunchSpec], cluster: Cluster) -> dict[str, Any]:
    """``NAME.yaml`` -> manifests. Raises Refused for engines that cannot run in a pod."""
    found: dict[str, Any] = {"namespace.yaml": [_object("v1", "Namespace", cluster.namespace, None)]}
    for engine in dict.fromkeys(spec.engine for spec in specs):
        found[f"engine-{engine}.yaml"] = engine_manifests([s for s in specs if s.engine == engine], cluster)
    found["tower.yaml"] = tower_manifests(cluster)
    found["tower-engines.yaml"] = {"engines": {spec.engine: _external(spec, cluster) for spec in specs}}
    return found


def engine_manifests(specs: Sequence[LaunchSpec], cluster: Cluster) -> list[Manifest]:
    """Everything of one engine; several specs are its replicas."""
    spec = specs[0]
    _refuse(spec)
    name, labels = _name(spec), {"app.kubernetes.io/name": _name(spec), "lmtower.dev/engine": spec.engine, **_PART_OF}
    claims = [
        _claim(f"{name}-{purpose}", size, labels, cluster)
        for purpose, size in (("models", cluster.models_size), ("caches", cluster.caches_size))
        if any(mount.target == f"/{purpose}" for mount in spec.mounts)
    ]
    deployment = _object("apps/v1", "Deployment", name, cluster, labels)
    deployment["spec"] = {
        "replicas": len(specs),
        # A second copy of the model would need a second GPU, so the old pod goes first.
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": {"app.kubernetes.io/name": name}},
        "template": {"metadata": {"labels": labels}, "spec": _pod(spec, name)},
    }
    service = _service(name, labels, cluster, "http", spec.port)
    return [*claims, deployment, service, _monitor(name, labels, cluster, "http")]


def _refuse(spec: LaunchSpec) -> None:
    if spec.image is None:
        raise Refused(
            f"engines.{spec.engine}: runs as a process on node {spec.node!r}; "
            f"Kubernetes needs a container. Set nodes.{spec.node}.driver: docker"
        )
    if spec.role:
        raise Refused(
            f"engines.{spec.engine}: one copy over several nodes runs on Ray; use KubeRay or LeaderWorkerSet for it, "
            "and give the engine to the tower as url:"
        )


def _pod(spec: LaunchSpec, name: str) -> Manifest:
    volumes: list[Manifest] = []
    mounts: list[Manifest] = []
    for index, mount in enumerate(spec.mounts):
        purpose = mount.target.strip("/").replace("/", "-").lower()[:40] or f"mount-{index}"
        owned = mount.target in ("/models", "/caches")
        source = (
            {"persistentVolumeClaim": {"claimName": f"{name}-{purpose}"}}
            if owned
            else {"hostPath": {"path": mount.source}}
        )
        volumes.append({"name": purpose, **source})
        mounts.append({"name": purpose, "mountPath": mount.target, "readOnly": mount.read_only})
    if spec.shm_bytes:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": str(spec.shm_bytes)}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    container: Manifest = {
        "name": "engine",
        "image": spec.image,
        "command": [_escape(spec.argv[0])],
        "args": [_escape(word) for word in _listening_everywhere(spec.argv[1:])],
        "env": _environment(spec),
        "ports": [{"name": "http", "containerPort": spec.port}],
        "volumeMounts": mounts,
    }
    if spec.health_path:
        container |= _probes(spec.health_path)
    if spec.devices:
        count = str(_gpus(spec))
        container["resources"] = {"limits": {_GPU: count}, "requests": {_GPU: count}}
    pod: Manifest = {"containers": [container], "volumes": volumes, "automountServiceAccountToken": False}
    if spec.devices:
        pod["tolerations"] = [{"key": _GPU, "operator": "Exists", "effect": "NoSchedule"}]
    return pod


def _environment(spec: LaunchSpec) -> list[Manifest]:
    plain: list[Manifest] = [{"name": name, "value": _escape(value)} for name, value in spec.env.items()]
    secret: list[Manifest] = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": ENGINES_SECRET, "key": variable(spec, name)}}}
        for name in spec.secrets
    ]
    return plain + secret


def _probes(path: str) -> Manifest:
    get = {"httpGet": {"path": path, "port": "http"}, "timeoutSeconds": 5}
    return {
        # 45 minutes: weights over the network, then compilation
        "startupProbe": {**get, "periodSeconds": 10, "failureThreshold": 270},
        "readinessProbe": {**get, "periodSeconds": 5, "failureThreshold": 2},
        "livenessProbe": {**get, "periodSeconds": 15, "failureThreshold": 8},
    }


def _gpus(spec: LaunchSpec) -> int:
    if spec.devices != ("all",):
        return len(spec.devices)
    argv = spec.argv
    if "--tensor-parallel-size" in argv:
        return int(argv[argv.index("--tensor-parallel-size") + 1])
    return 1


def _listening_everywhere(argv: Sequence[str]) -> list[str]:
    """A pod has an address of its own, so the node's private address becomes every address of the pod."""
    words = list(argv)
    if "--host" in words:
        words[words.index("--host") + 1] = "0.0.0.0"
    return words


def tower_manifests(cluster: Cluster) -> list[Manifest]:
    """The gateway: stateless but for keys and usage, which live on a claim (or in PostgreSQL by the tower file)."""
    name = "lmtower"
    labels = {"app.kubernetes.io/name": name, **_PART_OF}
    probe = {"httpGet": {"path": "/healthz", "port": "admin"}}
    container: Manifest = {
        "name": "tower",
        "image": cluster.tower_image,
        "args": ["serve", "--config", "/etc/lmtower/tower.yaml", "--data-dir", "/var/lib/lmtower"],
        "ports": [{"name": "http", "containerPort": 8080}, {"name": "admin", "containerPort": 8081}],
        "readinessProbe": {**probe, "periodSeconds": 5},
        "livenessProbe": {**probe, "periodSeconds": 15},
        "resources": {"requests": {"cpu": "500m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "envFrom": [{"secretRef": {"name": ENGINES_SECRET, "optional": True}}],
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/lmtower", "readOnly": True},
            {"name": "data", "mountPath": "/var/lib/lmtower"},
        ],
    }
    deployment = _object("apps/v1", "Deployment", name, cluster, labels)
    deployment["spec"] = {
        "replicas": 1,
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": {"app.kubernetes.io/name": name}},
        "template": {
            "metadata": {"labels": labels},
            "spec": {
                "terminationGracePeriodSeconds": 45,
                # the image's user is not root; the group makes the claim writable for it
                "securityContext": {"fsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
                "automountServiceAccountToken": False,
                "containers": [container],
                "volumes": [
                    {"name": "config", "secret": {"secretName": TOWER_SECRET}},
                    {"name": "data", "persistentVolumeClaim": {"claimName": "lmtower-data"}},
                ],
            },
        },
    }
    service = _service(name, labels, cluster, "http", 8080)
    admin = _service(f"{name}-admin", labels, cluster, "admin", 8081, selects=name)
    return [
        _claim("lmtower-data", "5Gi", labels, cluster),
        deployment,
        service,
        admin,
        _monitor(name, labels, cluster, "admin"),
    ]


def _external(spec: LaunchSpec, cluster: Cluster) -> Manifest:
    """The engine as the tower in the cluster sees it: an address. To be pasted into its tower file."""
    found: Manifest = {
        "url": f"http://{_name(spec)}.{cluster.namespace}.svc:{spec.port}",
        "model": spec.served_model,
    }
    key = next((name for name in spec.secrets if name.endswith("KEY")), None)
    return found | ({"api_key": f"env:{variable(spec, key)}"} if key else {})


def _claim(name: str, size: str, labels: dict[str, str], cluster: Cluster) -> Manifest:
    claim = _object("v1", "PersistentVolumeClaim", name, cluster, labels)
    claim["spec"] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    if cluster.storage_class:
        claim["spec"]["storageClassName"] = cluster.storage_class
    return claim


def _service(
    name: str, labels: dict[str, str], cluster: Cluster, port: str, number: int, selects: str | None = None
) -> Manifest:
    service = _object("v1", "Service", name, cluster, labels)
    service["spec"] = {
        "selector": {"app.kubernetes.io/name": selects or name},
        "ports": [{"name": port, "port": number, "targetPort": port}],
    }
    return service


def _monitor(name: str, labels: dict[str, str], cluster: Cluster, port: str) -> Manifest:
    monitor = _object("monitoring.coreos.com/v1", "ServiceMonitor", name, cluster, labels)
    monitor["spec"] = {
        "selector": {"matchLabels": {"app.kubernetes.io/name": labels["app.kubernetes.io/name"]}},
        "targetLabels": ["lmtower.dev/engine"] if "lmtower.dev/engine" in labels else [],
        "endpoints": [{"port": port, "interval": "15s", "relabelings": _relabelings(labels)}],
    }
    return monitor


def _relabelings(labels: dict[str, str]) -> list[Manifest]:
    """The labels that our rules and dashboards know."""
    engine = labels.get("lmtower.dev/engine")
    if engine is None:
        return [{"targetLabel": "job", "replacement": "lmtower"}]
    return [
        {"targetLabel": "engine", "replacement": engine},
        {"sourceLabels": ["__meta_kubernetes_pod_name"], "targetLabel": "replica"},
    ]


def _object(api: str, kind: str, name: str, cluster: Cluster | None, labels: dict[str, str] | None = None) -> Manifest:
    metadata: Manifest = {"name": name} | ({"namespace": cluster.namespace} if cluster else {})
    return {"apiVersion": api, "kind": kind, "metadata": metadata | ({"labels": labels} if labels else {})}


def _name(spec: LaunchSpec) -> str:
    """A DNS label: names of engines may hold dots and capitals."""
    return "lmtower-" + "".join(c if c.isalnum() else "-" for c in spec.engine.lower()).strip("-")


def _escape(text: str) -> str:
    """Kubernetes replaces ``$(NAME)``; a doubled dollar is a plain one."""
    return text.replace("$(", "$$(")
