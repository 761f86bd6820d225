"""Scrape targets and configuration, checked by the real promtool."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from lmtower.config.types import Engine, Gateway, Node, Persona, Tower
from lmtower.telemetry import prometheus
from lmtower.telemetry.prometheus import EngineTarget


def tower(**nodes: Node) -> Tower:
    """A tower with one engine and these nodes."""
    return Tower(
        gateway=Gateway(listen="0.0.0.0:8080", admin="0.0.0.0:8081"),
        nodes=nodes,
        engines={"nemotron": Engine(model="m")},
        personas={"plan": Persona(engine="nemotron")},
    )


def by_job(found: list[dict[str, object]], job: str) -> list[dict[str, object]]:
    """Targets of one job."""
    return [one for one in found if one["labels"]["job"] == job]  # type: ignore[index]


def test_gateway_is_always_a_target() -> None:
    """A wildcard listen address becomes one that can be connected to."""
    assert prometheus.targets(tower(), []) == [{"targets": ["127.0.0.1:8081"], "labels": {"job": "lmtower"}}]


@pytest.mark.parametrize(
    ("url", "address", "more"),
    [
        ("http://10.0.0.5:8100", "10.0.0.5:8100", {}),
        ("http://10.0.0.5:8100/v1", "10.0.0.5:8100", {}),
        ("http://user:secret@10.0.0.5:8100", "10.0.0.5:8100", {}),
        ("http://gpu.lan/llm/v1/", "gpu.lan:80", {"__metrics_path__": "/llm/metrics"}),
        ("https://gpu.lan", "gpu.lan:443", {"__scheme__": "https"}),
        ("http://[fd00::1]:8100", "[fd00::1]:8100", {}),
    ],
)
def test_engine_target_is_its_address(url: str, address: str, more: dict[str, str]) -> None:
    """Paths and schemes of external engines are kept, passwords are not."""
    found = by_job(prometheus.targets(tower(), [EngineTarget("nemotron", "spark", url, "vllm")]), "vllm")
    labels = {"job": "vllm", "engine": "nemotron", "replica": "spark", **more}
    assert found == [{"targets": [address], "labels": labels}]


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (Node(address="ssh://ops@spark.lan"), "http://spark.lan:9401"),
        (Node(address="ssh://ops@spark.lan", bind="10.0.0.7"), "http://10.0.0.7:9401"),
        (Node(address="ssh://ops@spark.lan", agent="http://other:1234"), "http://other:1234"),
        (Node(), None),
        (Node(agent="http://127.0.0.1:9401"), "http://127.0.0.1:9401"),
    ],
)
def test_agent_is_found_at_its_node(node: Node, expected: str | None) -> None:
    """A remote node has an agent on the usual port; a local one only if the tower file says so."""
    assert prometheus.agent_url(node) == expected


def test_node_agents_are_targets() -> None:
    """Agents carry the node's name."""
    found = by_job(prometheus.targets(tower(spark=Node(address="ssh://ops@spark.lan")), []), "lmtower-node")
    assert found == [{"targets": ["spark.lan:9401"], "labels": {"job": "lmtower-node", "node": "spark"}}]


def test_targets_are_plain_json() -> None:
    """http_sd is JSON: nothing else may be in it."""
    found = prometheus.targets(tower(spark=Node(address="ssh://a@b")), [EngineTarget("e", "r", "http://h:1", "vllm")])
    assert json.loads(json.dumps(found)) == found


@pytest.mark.tools
def test_promtool_accepts_configuration_and_rules(tmp_path: Path) -> None:
    """``promtool check config`` reads the whole set of files, rules included."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (Debian: prometheus) is not installed")
    for path, content in prometheus.files(tower()).items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(json.dumps(content))  # JSON is YAML
    done = subprocess.run(
        [promtool, "check", "config", "--lint=all", "--lint-fatal", str(tmp_path / prometheus.CONFIG_FILE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout + done.stderr
