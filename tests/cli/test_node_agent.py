"""``lmtower node-agent``: as a real process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from lmtower.cli.app import main

TOWER = """
nodes: {spark: {address: ssh://ops@spark.lan, hardware: dgx-spark, reserve: 3 GiB}}
engines: {mini: {node: spark, model: Qwen/Qwen2.5-Coder-1.5B, importance: 7}}
personas: {plan: {engine: mini}}
"""


def test_once_prints_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Name and reserve come from the tower file when it is there."""
    (tmp_path / "tower.yaml").write_text(TOWER)
    assert main(["-c", str(tmp_path / "tower.yaml"), "node-agent", "--once"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["node"], found["reserve_bytes"]) == ("spark", 3 * 1024**3)
    assert found["memory_total_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reserve", "much"], "--reserve: 'much' is not a size"),
        (["--importance", "eyes"], "write it as ENGINE=NUMBER"),
        (["--tower", "http://tower:8081"], "--tower needs --key-file"),
        (["--listen", "nowhere"], "--listen: 'nowhere' is not HOST:PORT"),
    ],
)
def test_wrong_option_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each mistake says what to write instead, and nothing is started."""
    assert main(["-c", str(tmp_path / "none.yaml"), "node-agent", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_unknown_node_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A typing mistake does not guard the wrong node."""
    (tmp_path / "tower.yaml").write_text(TOWER)
    assert main(["-c", str(tmp_path / "tower.yaml"), "node-agent", "--node", "sprak", "--once"]) == 2
    assert "only spark" in capsys.readouterr().err


def test_agent_serves_until_it_is_asked_to_end(tmp_path: Path) -> None:
    """It says where it listens, answers, and ends with 0 on SIGTERM."""
    command = [str(Path(sys.executable).with_name("lmtower")), "-c", str(tmp_path / "none.yaml"), "node-agent"]
    command += ["--listen", "127.0.0.1:0", "--reserve", "1 MiB"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = re.search(r"127\.0\.0\.1:(\d+), watchdog on", line)
        assert port, line
        with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/metrics", timeout=5) as reply:
            assert b"lmtower_node_watchdog_level 0" in reply.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()
