"""The node agent: facts and metrics of one node over HTTP, and the watchdog beside them. Threads, no event loop."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lmtower import __version__
from lmtower.errors import NodeError
from lmtower.logs import get_logger
from lmtower.nodes import agent_exporter
from lmtower.nodes.agent_exporter import Readings
from lmtower.nodes.agent_gpu import Gpus
from lmtower.nodes.agent_memory import Memory
from lmtower.nodes.watchdog_actor import Watchdog

log = get_logger(__name__)


class Agent:
    """Reads one node. ``models`` is the folder whose free space counts."""

    def __init__(
        self,
        node: str,
        memory: Callable[[], Memory],
        gpus: Callable[[], Gpus] = Gpus,
        *,
        reserve_bytes: int | None = None,
        models: Path | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        self.node = node
        self.watchdog = watchdog
        self._memory = memory
        self._gpus = gpus
        self._reserve_bytes = reserve_bytes
        self._models = models

    def readings(self) -> Readings:
        """Everything, now."""
        return Readings(
            version=__version__,
            memory=self._memory(),
            gpus=self._gpus(),
            reserve_bytes=self._reserve_bytes,
            disk_free_bytes=self._disk_free(),
            watchdog=self.watchdog.reading if self.watchdog else None,
        )

    def facts(self) -> dict[str, Any]:
        """What ``GET /facts`` answers."""
        return agent_exporter.facts(self.node, self.readings())

    def watch(self, stop: threading.Event, every_seconds: float = 1.0) -> None:
        """Let the watchdog look until ``stop`` is set. A look that fails is logged; the next one comes anyway."""
        while not stop.wait(every_seconds):
            if self.watchdog is None:
                continue
            try:
                self.watchdog.step()
            except NodeError as error:
                log.error("watchdog.blind", node=self.node, error=str(error))

    def _disk_free(self) -> int | None:
        if self._models is None:
            return None
        try:
            return shutil.disk_usage(self._models).free
        except OSError:
            return None


def serve(agent: Agent, host: str, port: int) -> ThreadingHTTPServer:
    """A bound server; call ``serve_forever``. Raises NodeError when the address is taken."""

    class Handler(BaseHTTPRequestHandler):
        """Three read-only routes."""

        server_version = f"lmtower-node-agent/{__version__}"
        sys_version = ""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, agent_exporter.CONTENT_TYPE, agent_exporter.page(agent.readings()))
            elif path == "/facts":
                self._answer(200, "application/json", json.dumps(agent.facts()))
            elif path == "/healthz":
                self._answer(200, "application/json", '{"status": "ok"}')
            else:
                self._answer(404, "application/json", '{"error": {"message": "GET /metrics, /facts or /healthz"}}')

        def _answer(self, status: int, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Scrapes are not worth a line."""

    try:
        return ThreadingHTTPServer((host, port), Handler)
    except OSError as exc:
        raise NodeError(f"the node agent cannot listen on {host}:{port}: {exc.strerror or exc}.") from exc
