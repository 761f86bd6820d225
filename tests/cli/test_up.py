"""``lmtower up`` as a person runs it: one real model in a child process, from the first start to Ctrl-C."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xllamacpp", reason="needs the embedded engine: pip install 'lmtower[demo]'")
pytestmark = pytest.mark.embedded

PATIENCE_SECONDS = 180.0
TOWER = """\
engines:
  smol: {{model: "bundled:smollm2", context: 2k, sequences: 2, port: {port}}}
personas:
  fast: {{engine: smol, temperature: 0.2, max_tokens: 16}}
  calm: {{engine: smol, system: "You are calm.", max_tokens: 16}}
"""


class Up:
    """One running ``lmtower up`` and what it has printed so far."""

    def __init__(self, folder: Path) -> None:
        self.output = ""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lmtower", "up", "--port", "0", "--data-dir", "data"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def wait_ready(self) -> None:
        """Read until the page is complete."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + PATIENCE_SECONDS
        while "Ctrl-C stops everything." not in self.output:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self._process.stdout.fileno(), 65536) if ready else b""
            assert chunk, f"not ready: {self.output}"
            self.output += chunk.decode()

    def find(self, pattern: str) -> str:
        """The first match in what was printed."""
        match = re.search(pattern, self.output)
        assert match, self.output
        return match[1]

    def ask(self, key: str) -> tuple[int, Any]:
        """One chat request to the tower: status and JSON answer."""
        connection = http.client.HTTPConnection(self.find(r"address  http://(\S+)/v1"), timeout=PATIENCE_SECONDS)
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(QUESTION), headers)
        answer = connection.getresponse()
        document = json.loads(answer.read())
        connection.close()
        return answer.status, document

    def stop(self, number: signal.Signals) -> int:
        """Send a signal and return the exit code."""
        os.kill(self.pid, number)
        return self._process.wait(PATIENCE_SECONDS)

    def kill(self) -> None:
        """Leave nothing behind, however the test ended."""
        if self._process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tower file whose engine has a port of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "tower.yaml").write_text(TOWER.format(port=port), "utf-8")
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Any]:
    """Starts towers on the folder; all are gone afterwards."""
    running: list[Up] = []

    def run() -> Up:
        running.append(Up(folder))
        running[-1].wait_ready()
        return running[-1]

    yield run
    for up in running:
        up.kill()


def engine_pid(folder: Path) -> int:
    """The engine's process, as the process driver writes it down; 0 while it is being replaced."""
    try:
        return int(json.loads((folder / "data/engines/lmtower-smol.json").read_text("utf-8"))["pid"])
    except (FileNotFoundError, json.JSONDecodeError):
        return 0


def ends(pid: int) -> bool:
    """Wait until a process is gone."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except OSError:
            return True
        time.sleep(0.02)  # nobody tells us about a process that is not our child
    return False


QUESTION = {"model": "fast", "messages": [{"role": "user", "content": "Say hello."}]}


def test_first_start_answers_and_second_start_keeps_the_key(start: Any, folder: Path) -> None:
    """The printed key works, the request is recorded, Ctrl-C ends everything, the key outlives the restart."""
    first = start()
    key = first.find(r"key      (sk-lmt-\S+)")
    status, answer = first.ask(key)
    assert (status, answer["model"]) == (200, "fast")
    assert answer["choices"][0]["message"]["content"].strip()
    engine = engine_pid(folder)
    assert first.stop(signal.SIGINT) == 0
    assert ends(engine)
    assert not (folder / "data/tower.json").exists()

    second = start()
    assert "sk-lmt-" not in second.output
    assert second.ask(key)[0] == 200
    shown = subprocess.run(
        [sys.executable, "-m", "lmtower", "usage", "--by", "persona", "--format", "json", "--data-dir", "data"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert '"fast"' in shown.stdout
    assert second.stop(signal.SIGTERM) == 0


def test_killed_tower_leaves_no_engine_behind(start: Any, folder: Path) -> None:
    """The engine hangs on a pipe of the tower, so even ``kill -9`` takes it along."""
    up = start()
    engine = engine_pid(folder)
    assert up.stop(signal.SIGKILL) == -signal.SIGKILL
    assert ends(engine)


def test_killed_engine_comes_back_by_itself(start: Any, folder: Path) -> None:
    """A crash of native code is a pause with clean errors for clients, not the end of the tower."""
    up = start()
    key = up.find(r"key      (sk-lmt-\S+)")
    engine = engine_pid(folder)
    os.kill(engine, signal.SIGKILL)
    assert ends(engine)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (answer := up.ask(key))[0] != 200 and time.monotonic() < deadline:
        assert answer[0] in (502, 503)
        assert isinstance(answer[1]["error"]["code"], str)
        time.sleep(0.05)  # a client would wait for Retry-After
    assert answer[1]["choices"]
    assert engine_pid(folder) not in (0, engine)


def test_taken_port_is_said_and_leaves_nothing_behind(folder: Path) -> None:
    """A second tower on the same address fails with the key to change, and stops the engine it had started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = (folder / "tower.yaml").read_text("utf-8")
        (folder / "tower.yaml").write_text(
            f"gateway: {{listen: '127.0.0.1:{port}', admin: '127.0.0.1:0'}}\n{text}", "utf-8"
        )
        done = subprocess.run(
            [sys.executable, "-m", "lmtower", "up", "--data-dir", "data"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    assert done.returncode == 1
    assert f"gateway.listen: cannot listen on 127.0.0.1:{port}" in done.stderr
    assert not list((folder / "data/engines").glob("*.json"))
