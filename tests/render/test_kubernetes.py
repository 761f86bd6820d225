"""Kubernetes manifests against Kubernetes' own schemas, and what they promise."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import kubernetes_validate
import pytest

from lmtower.errors import Refused
from lmtower.render import kubernetes
from lmtower.render.kubernetes import Cluster
from tests.render.specs import containers, process

CLUSTER = Cluster(tower_image="lmtower:0.1.0")
VERSIONS = ("1.31", "1.34", "1.37")


def manifests() -> list[dict[str, Any]]:
    """Every manifest of the set."""
    files = kubernetes.files(containers(), CLUSTER)
    return [one for documents in files.values() if isinstance(documents, list) for one in documents]


def one(kind: str, name: str) -> dict[str, Any]:
    """The manifest of that kind and name."""
    (found,) = [each for each in manifests() if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_schema_accepts_every_manifest(version: str) -> None:
    """Strict validation: an unknown field is an error, too. Monitors are checked below."""
    checked = 0
    for manifest in manifests():
        if manifest["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(json.loads(json.dumps(manifest)), version, strict=True)
            checked += 1
    assert checked == 1 + 3 * 4 + 4


def test_wrong_manifest_would_be_noticed() -> None:
    """The validator is awake."""
    broken = one("Deployment", "lmtower-eyes") | {"spec": {"replicas": "many"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_names_are_unique_within_a_kind() -> None:
    """``kubectl apply`` would let the last one win."""
    names = [(each["kind"], each["metadata"]["name"]) for each in manifests()]
    assert len(names) == len(set(names))


def test_engine_asks_for_its_gpu_and_replaces_itself() -> None:
    """One GPU each; the old pod goes before the new one comes."""
    spec = one("Deployment", "lmtower-nemotron")["spec"]
    container = spec["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert spec["strategy"] == {"type": "Recreate"}


def test_tensor_parallel_asks_for_as_many_gpus() -> None:
    """The limit is what the engine will use."""
    spec = replace(containers()[0], argv=(*containers()[0].argv, "--tensor-parallel-size", "4"))
    deployment = kubernetes.engine_manifests([spec], CLUSTER)[2]
    assert deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "4"}


def test_engine_listens_on_its_pod() -> None:
    """The node's private address means nothing in a pod; everything else of argv stays."""
    container = one("Deployment", "lmtower-nemotron")["spec"]["template"]["spec"]["containers"][0]
    given = list(containers()[0].argv)
    given[given.index("--host") + 1] = "0.0.0.0"
    assert [*container["command"], *container["args"]] == given


def test_replicas_of_an_engine_are_replicas_of_its_deployment() -> None:
    """Two nodes in the tower file, two pods in the cluster."""
    spec = containers()[0]
    deployment = kubernetes.engine_manifests([spec, replace(spec, node="spark2")], CLUSTER)[2]
    assert deployment["spec"]["replicas"] == 2


def test_probes_wait_long_for_the_start_and_not_for_the_rest() -> None:
    """Weights take their time; a hung engine does not get it."""
    container = one("Deployment", "lmtower-eyes")["spec"]["template"]["spec"]["containers"][0]
    assert container["startupProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"] >= 2700
    assert container["livenessProbe"]["periodSeconds"] * container["livenessProbe"]["failureThreshold"] <= 120


def test_claims_are_mounted_where_the_engine_looks() -> None:
    """Weights and compile caches survive the pod."""
    pod = one("Deployment", "lmtower-eyes")["spec"]["template"]["spec"]
    claims = {
        v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
    }
    assert claims == {"models": "lmtower-eyes-models", "caches": "lmtower-eyes-caches"}
    assert {m["mountPath"] for m in pod["containers"][0]["volumeMounts"]} == {"/models", "/caches", "/dev/shm"}


def test_secrets_are_referred_to_not_written() -> None:
    """A manifest may go into a public repository."""
    assert "secret-engine-key" not in json.dumps(manifests())
    env = one("Deployment", "lmtower-eyes")["spec"]["template"]["spec"]["containers"][0]["env"]
    reference = {"secretKeyRef": {"name": "lmtower-engines", "key": "EYES_VLLM_API_KEY"}}
    assert {"name": "VLLM_API_KEY", "valueFrom": reference} in env


def test_monitors_find_their_services() -> None:
    """Every monitor selects a service that exists and has the port that it names."""
    services = [each for each in manifests() if each["kind"] == "Service"]
    monitors = [each for each in manifests() if each["kind"] == "ServiceMonitor"]
    assert len(monitors) == 4
    for monitor in monitors:
        wanted, port = monitor["spec"]["selector"]["matchLabels"], monitor["spec"]["endpoints"][0]["port"]
        found = [s for s in services if wanted.items() <= s["metadata"]["labels"].items()]
        assert any(port == p["name"] for service in found for p in service["spec"]["ports"])


def test_monitors_set_the_labels_of_our_dashboards() -> None:
    """``engine`` on engines, ``job: lmtower`` on the tower."""
    relabelings = one("ServiceMonitor", "lmtower-eyes")["spec"]["endpoints"][0]["relabelings"]
    assert {"targetLabel": "engine", "replacement": "eyes"} in relabelings
    tower = one("ServiceMonitor", "lmtower")["spec"]["endpoints"][0]["relabelings"]
    assert tower == [{"targetLabel": "job", "replacement": "lmtower"}]


def test_tower_reaches_the_engines_by_their_services() -> None:
    """The section to paste into the cluster's tower file."""
    engines = kubernetes.files(containers(), CLUSTER)["tower-engines.yaml"]["engines"]
    assert engines["coder"] == {
        "url": "http://lmtower-coder.lmtower.svc:8102",
        "model": "Qwen/Qwen2.5-Coder-1.5B",
        "api_key": "env:CODER_VLLM_API_KEY",
    }


def test_storage_class_is_used_when_given() -> None:
    """Without one the cluster's default is taken."""
    assert "storageClassName" not in one("PersistentVolumeClaim", "lmtower-eyes-models")["spec"]
    claim = kubernetes.engine_manifests(containers()[:1], replace(CLUSTER, storage_class="fast"))[0]
    assert claim["spec"]["storageClassName"] == "fast"


@pytest.mark.parametrize(
    ("spec", "message"),
    [(process(), "Set nodes.local.driver: docker"), (replace(containers()[0], role="head"), "LeaderWorkerSet")],
    ids=["process", "ray"],
)
def test_what_no_pod_can_run_is_refused(spec: Any, message: str) -> None:
    """The message says what to do instead."""
    with pytest.raises(Refused, match=message):
        kubernetes.files([spec], CLUSTER)
