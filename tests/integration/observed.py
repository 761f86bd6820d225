"""A real Prometheus over a running tower: start it, ask it, wait for what it says."""

from __future__ import annotations

import json
import math
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from lmtower.config.types import Gateway, Tower
from lmtower.telemetry import grafana, prometheus
from lmtower.telemetry.dashboards import BOARDS

WINDOW = "40s"
QUICK = {"1m": "8s", "5m": "10s", "10m": "15s", "15m": "10s", "1h": "40s"}
"""Time in rules, shortened for tests; thresholds stay as they are."""


class Prometheus:
    """The HTTP API of one Prometheus."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=20, trust_env=False)

    def get(self, path: str, **parameters: str) -> Any:
        """``data`` of an answer; None while Prometheus is not ready."""
        try:
            answer = self._client.get(path, params=parameters).json()
        except (httpx.TransportError, ValueError):
            return None
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def values(self, query: str) -> list[float]:
        """Finite values of an instant query."""
        found = self.get("/api/v1/query", query=query) or {"result": []}
        numbers = [float(each["value"][1]) for each in found["result"]]
        return [number for number in numbers if math.isfinite(number)]

    def exemplars(self, metric: str) -> set[str]:
        """Request ids that hang on the buckets of a histogram."""
        now = time.time()
        window = {"start": str(now - 300), "end": str(now)}
        found = self.get("/api/v1/query_exemplars", query=metric, **window) or []
        return {one["labels"]["request_id"] for series in found for one in series["exemplars"]}

    def firing(self) -> set[str]:
        """Names of alerts that fire."""
        alerts = (self.get("/api/v1/alerts") or {"alerts": []})["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def up(self) -> dict[str, str]:
        """job/engine/node -> health of every target."""
        targets = (self.get("/api/v1/targets") or {"activeTargets": []})["activeTargets"]
        names = ("job", "engine", "node")
        return {"/".join(t["labels"][n] for n in names if n in t["labels"]): t["health"] for t in targets}

    def until(self, what: str, true: Any, seconds: float = 60) -> None:
        """Wait for something that Prometheus will notice."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"{what}: not within {seconds} s; up: {self.up()}, {self.firing()}"
            time.sleep(0.3)  # its own clock decides when it looks

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


@contextmanager
def running_prometheus(program: str, folder: Path, admin: str, port: int) -> Iterator[Prometheus]:
    """Prometheus on the files that ``lmtower render prometheus`` writes: every second, in short windows."""
    tower = Tower(gateway=Gateway(admin=admin), engines={}, personas={})
    files = prometheus.files(tower, every="1s")
    recordings, alerts = files[prometheus.RULES_FILE]["groups"]
    for rule in (*recordings["rules"], *alerts["rules"]):
        rule["expr"] = re.sub(r"(?<=\[)\w+(?=\])|(?<=offset )\w+", lambda found: QUICK[found[0]], rule["expr"])
    for rule in alerts["rules"]:
        rule["for"] = "2s"
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(content))
    command = [program, f"--config.file={folder / prometheus.CONFIG_FILE}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage", "--log.level=warn"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        client = Prometheus(f"http://127.0.0.1:{port}")
        try:
            yield client
        finally:
            client.close()
            process.terminate()
            process.wait(20)


def panel_queries(window: str = WINDOW) -> Iterator[tuple[str, str]]:
    """(where, PromQL) of every query of every dashboard, with Grafana's variables filled in."""
    for board in BOARDS:
        for panel in grafana.render(board)["panels"]:
            for target in panel.get("targets", ()):
                expr = target["expr"].replace("$__rate_interval", window).replace("$__range", window)
                yield f"{board.uid} / {panel['title']} / {target['refId']}", re.sub(r"\$\w+", ".*", expr)
