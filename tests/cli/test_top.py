"""``lmtower top``: rates from two looks, and a screen of 80 by 24."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lmtower.cli.app import main
from lmtower.cli.top_data import Frame, Look, Memory, Rates, frame, read_counters
from lmtower.cli.top_view import screen
from lmtower.telemetry import Metrics
from tests.telemetry.records import Record

GIB = 1024**3


def engine(name: str, **more: Any) -> dict[str, Any]:
    """An engine as ``/admin/status`` tells it."""
    queued = {"interactive": 0, "agent": 1, "default": 2, "batch": 30}
    plain = {"name": name, "state": "ready", "slots": 4, "in_flight": 3, "queued": queued, "held": [], "hit_rate": 0.5}
    return plain | more


def persona(name: str) -> dict[str, Any]:
    """A persona as ``/admin/status`` tells it."""
    return {"name": name, "engine": "nemotron", "lane": "default", "requests": 3, "hit_rate": None, "ttft_p50": 0.25}


def status(engines: int = 1, personas: int = 1, error: str | None = None) -> dict[str, Any]:
    """A whole status."""
    return {
        "engines": [engine("nemotron"), *(engine(f"e{n}") for n in range(engines - 1))],
        "personas": [persona("plan"), *(persona(f"p{n}") for n in range(personas - 1))],
        "snapshot": {"version": 1, "error": error},
        "gateway": {"listen": "0.0.0.0:8080", "open_streams": 2},
    }


def shown(view: Frame, height: int = 24) -> list[str]:
    """The lines on a terminal of 80 columns."""
    console = Console(width=80, height=height, file=io.StringIO(), record=True, color_system=None)
    console.print(screen(view, height))
    return console.export_text().splitlines()


def page(requests: int) -> str:
    """A real ``/metrics`` page after so many requests of 2000 prompt tokens, 1500 cached, 300 out."""
    metrics = Metrics()
    for _ in range(requests):
        metrics.finished(Record(persona="plan", engine="nemotron"))
        metrics.finished(Record(persona="plan", engine="nemotron", client="bob", lane="agent"))
    return metrics.render()[1].decode()


def test_counters_are_summed_over_clients_and_lanes() -> None:
    """Two series of one persona and engine become one number."""
    found = read_counters(page(5))
    assert found["input_tokens", "plan", "nemotron"] == 2 * 5 * 2000
    assert found["requests", "plan", "nemotron"] == 10


def test_rates_are_differences_over_time() -> None:
    """Ten requests in two seconds are five a second."""
    before = Look(10.0, status(), read_counters(page(5)))
    after = Look(12.0, status(), read_counters(page(10)))
    view = frame(before, after)
    assert view.total == Rates(requests=5, input_tokens=10_000, cached_tokens=7_500, output_tokens=1_500)
    assert view.engines["nemotron"] == view.personas["plan"] == view.total
    assert view.total.hit_rate == 0.75


def test_first_look_has_no_rates() -> None:
    """Nothing is known yet."""
    assert frame(None, Look(1.0, status(), read_counters(page(5)))).total == Rates()


def test_restarted_tower_counts_from_zero() -> None:
    """A counter that fell never makes a negative rate."""
    view = frame(Look(0.0, status(), read_counters(page(10))), Look(1.0, status(), read_counters(page(2))))
    assert view.total.requests == 4


def test_screen_fits_80_by_24() -> None:
    """Many engines, personas and nodes: nothing is wider or longer than the terminal."""
    memory = tuple(Memory(f"node-{n}", 120 * GIB, 40 * GIB) for n in range(2))
    lines = shown(Frame(status(engines=9, personas=40), Rates(), memory=memory))
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert any("more" in line for line in lines)


def test_screen_shows_the_tower() -> None:
    """Numbers, queue by lane, TTFT, hit rate, memory."""
    rates = {"nemotron": Rates(2, 4000, 3000, 90)}
    personas = {"plan": Rates(2, 4000, 3000, 90)}
    view = Frame(status(), Rates(2, 4000, 3000, 90), rates, personas, (Memory("spark", 120 * GIB, 30 * GIB, 12 * GIB),))
    text = "\n".join(shown(view))
    for word in (
        "2.0 req/s",
        "4.0k in/s",
        "90 out/s",
        "cached 75%",
        "■■■□ 3/4",
        "0/1/2/30",
        "250 ms",
        "30.0 of 120.0 GiB",
    ):
        assert word in text


def test_busiest_persona_comes_first() -> None:
    """What matters is on top when the list is long."""
    lines = shown(Frame(status(personas=3), Rates(), personas={"p1": Rates(requests=9)}))
    names = [line.split()[0] for line in lines if line.startswith(("plan", "p0", "p1"))]
    assert names[0] == "p1"


def test_wrong_tower_file_is_told() -> None:
    """The last good one still serves; the screen says so."""
    assert any("lmtower check" in line for line in shown(Frame(status(error="bad"), Rates())))


class Admin(BaseHTTPRequestHandler):
    """A tower's admin listener and a node agent in one."""

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        answers = {
            "/admin/status": status(),
            "/metrics": page(3),
            "/admin/targets": [
                {"targets": [f"127.0.0.1:{port}"], "labels": {"job": "lmtower-node", "node": "spark"}},
                {"targets": ["127.0.0.1:9"], "labels": {"job": "lmtower-node", "node": "gone"}},
            ],
            "/facts": {"memory_total_bytes": 120 * GIB, "memory_available_bytes": 30 * GIB},
        }
        answer = answers[self.path]
        body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silent."""


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """The data folder of a tower that runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Admin)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    (tmp_path / "tower.json").write_text(json.dumps({"admin": f"127.0.0.1:{server.server_address[1]}"}))
    (tmp_path / "admin.key").write_text("key\n")
    yield tmp_path
    server.shutdown()
    server.server_close()
    thread.join()


def test_once_prints_one_screen(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For a script or a ticket; a node agent that does not answer is left out."""
    assert main(["--data-dir", str(data), "top", "--once", "--every", "0.2"]) == 0
    text = capsys.readouterr().out
    assert "nemotron" in text
    assert "30.0 of 120.0 GiB free" in text
    assert "gone" not in text


def test_live_screen_on_a_terminal_ends_with_q(data: Path) -> None:
    """A real terminal of 80 by 24: the screen is drawn, ``q`` ends it, the terminal is as it was."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(inner)
    command = [str(Path(sys.executable).with_name("lmtower")), "--data-dir", str(data), "top", "--every", "0.2"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment)
    seen = b""
    try:
        while b"q quits" not in seen:
            ready, _, _ = select.select([outer], [], [], 30)
            assert ready, seen
            seen += os.read(outer, 65536)
        os.write(outer, b"q")
        assert process.wait(20) == 0
        assert termios.tcgetattr(inner) == before
    finally:
        process.kill()
        process.wait()
        os.close(outer)
        os.close(inner)
    assert b"nemotron" in seen
    assert b"\x1b[?1049h" in seen  # the alternate screen: what was there before comes back


def test_no_tower_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What to do is in the message."""
    assert main(["--data-dir", str(tmp_path), "top"]) == 1
    assert "no tower runs" in capsys.readouterr().err
