"""What a kill -9 costs: of the gateway under load no finished request's record, of an engine only its own answers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmtower.config.types import Limits
from lmtower.ledger import Ledger
from tests.fakes.engine import FakeEngine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def tower_process(folder: Path, engine: FakeEngine) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """``lmtower serve`` as a program of its own, ready to be killed."""
    port = free_port()
    file = folder / "tower.yaml"
    file.write_text(
        f'gateway: {{listen: "127.0.0.1:{port}", admin: "127.0.0.1:{free_port()}"}}\n'
        f'engines: {{big: {{model: {engine.models[0]}, url: "{engine.url}", slots: 64}}}}\n'
        "personas: {plan: {engine: big, system: Plan.}}\n"
    )
    command = [sys.executable, "-m", "lmtower", "serve", "-c", str(file), "--data-dir", str(folder / "data")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline()  # the line that says where it serves
        yield process, port
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def finished_requests(port: int, key: str, stream: bool, found: set[str], enough: threading.Event) -> None:
    """Send requests until the connection breaks; remember the id of every answer that arrived in full."""
    body = json.dumps({"model": "plan", "messages": [{"role": "user", "content": "x"}], "stream": stream})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        while True:
            connection.request("POST", "/v1/chat/completions", body, {"authorization": f"Bearer {key}"})
            answer = connection.getresponse()
            answer.read()
            found.add(answer.headers["x-request-id"])
            if len(found) >= 300:
                enough.set()
    except (OSError, http.client.HTTPException):
        return
    finally:
        connection.close()


def test_killed_gateway_has_recorded_every_finished_request(tmp_path: Path) -> None:
    """kill -9 in the middle of load: every answer that a client has in full is in the ledger afterwards."""
    ledger = Ledger.open(tmp_path / "data")
    key = ledger.create_key("load").secret
    with FakeEngine("m") as engine, tower_process(tmp_path, engine) as (process, port):
        found: list[set[str]] = [set() for _ in range(6)]
        enough = threading.Event()
        threads = [
            threading.Thread(target=finished_requests, args=(port, key, number % 2 == 0, found[number], enough))
            for number in range(6)
        ]
        for thread in threads:
            thread.start()
        assert enough.wait(60)
        os.kill(process.pid, signal.SIGKILL)
        for thread in threads:
            thread.join(30)
    finished = set().union(*found)
    recorded = recorded_ids(tmp_path / "data")
    assert len(finished) >= 300
    assert finished - set(recorded) == set()
    assert len(recorded) == len(set(recorded))


def test_budget_that_is_spent_stays_spent_after_kill_9(tmp_path: Path) -> None:
    """Nothing of what a killed tower let through is forgotten: the next one refuses from its first request on."""
    ledger = Ledger.open(tmp_path / "data")
    key = ledger.create_key("alice", limits=Limits(tokens_per_day=100)).secret
    ledger.shut()
    body = json.dumps({"model": "plan", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5})
    statuses, codes = [], []
    with FakeEngine("m") as engine:
        engine.script(text="a b", input_tokens=90)
        for _ in range(2):
            with tower_process(tmp_path, engine) as (process, port):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
                connection.request("POST", "/v1/chat/completions", body, {"authorization": f"Bearer {key}"})
                answer = connection.getresponse()
                statuses.append(answer.status)
                codes.append(json.loads(answer.read()).get("error", {}).get("code"))
                os.kill(process.pid, signal.SIGKILL)
                connection.close()
    assert (statuses, codes) == ([200, 429], [None, "insufficient_quota"])


def recorded_ids(data_dir: Path) -> list[str]:
    """Request ids in SQL once a new process has drained what the killed one left in its journal."""
    script = (
        "import sys, sqlite3; from pathlib import Path; from lmtower.ledger import Ledger\n"
        "data = Path(sys.argv[1]); Ledger.open(data).drain()\n"
        "rows = sqlite3.connect(data / 'ledger.db').execute('select request_id from usage')\n"
        "print('\\n'.join(row[0] for row in rows))"
    )
    out = subprocess.run([sys.executable, "-c", script, str(data_dir)], capture_output=True, text=True, check=True)
    return out.stdout.split()
