"""Prometheus's side: the scrape configuration and the targets that ``/admin/targets`` serves (http_sd).

Labels are the same everywhere: ``job`` (``lmtower``, ``vllm``, ``llamacpp``, ``external``, ``lmtower-node``),
``engine`` and ``replica`` on engines, ``node`` on node agents. vLLM has a label ``engine`` of its own (a number);
Prometheus keeps it as ``exported_engine``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from lmtower.config.types import Node, Tower

AGENT_PORT = 9401
RULES_FILE = "rules/lmtower.yaml"
CONFIG_FILE = "prometheus.yml"


@dataclass(frozen=True, slots=True)
class EngineTarget:
    """One replica of an engine whose ``/metrics`` are scraped. ``url`` is its base address."""

    engine: str
    replica: str
    url: str
    runtime: str


def targets(tower: Tower, engines: Iterable[EngineTarget]) -> list[dict[str, Any]]:
    """All scrape targets as http_sd wants them: a full list of ``{"targets": [...], "labels": {...}}``."""
    found = [_target(reachable(tower.gateway.admin), {"job": "lmtower"})]
    for one in engines:
        labels = {"job": one.runtime, "engine": one.engine, "replica": one.replica}
        found.append(_target(one.url, labels))
    for name, node in tower.nodes.items():
        agent = agent_url(node)
        if agent is not None:
            found.append(_target(agent, {"job": "lmtower-node", "node": name}))
    return found


def agent_url(node: Node) -> str | None:
    """Where the node's agent answers; None for a local node without one."""
    if node.agent is not None:
        return node.agent
    host = node.bind or urlsplit(node.address).hostname
    if node.address == "local" or host is None:
        return None
    return f"http://{host}:{AGENT_PORT}"


def reachable(listen: str) -> str:
    """A listen address as something to connect to: ``0.0.0.0`` and ``[::]`` become this machine."""
    host, _, port = listen.rpartition(":")
    return f"{'127.0.0.1' if host in ('', '0.0.0.0', '[::]', '::') else host}:{port}"


def _target(url: str, labels: Mapping[str, str]) -> dict[str, Any]:
    parts = urlsplit(url if "//" in url else f"http://{url}")
    address = parts.netloc.rpartition("@")[2]
    if parts.port is None:
        address += ":443" if parts.scheme == "https" else ":80"
    scrape = dict(labels)
    if parts.scheme == "https":
        scrape["__scheme__"] = "https"
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    if prefix:
        scrape["__metrics_path__"] = f"{prefix}/metrics"
    return {"targets": [address], "labels": scrape}


def scrape_config(tower: Tower, *, every: str = "15s") -> dict[str, Any]:
    """``prometheus.yml``. Targets come from the tower itself, so engines appear without a reload of Prometheus."""
    admin = reachable(tower.gateway.admin)
    return {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": [RULES_FILE],
        "scrape_configs": [
            {
                "job_name": "lmtower",
                "http_sd_configs": [{"url": f"http://{admin}/admin/targets", "refresh_interval": every}],
            }
        ],
    }


def files(tower: Tower, *, every: str = "15s") -> dict[str, Any]:
    """Path -> content of everything that Prometheus needs, as plain data to be written as YAML."""
    from lmtower.telemetry import rules  # here, because a gateway imports this module for its targets

    return {CONFIG_FILE: scrape_config(tower, every=every), RULES_FILE: rules.rule_file(every)}
