"""Units: what they start, what they never contain, and the judgement of systemd-analyze."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from lmtower.render import systemd
from lmtower.render.systemd import Paths
from tests.render.specs import containers, process

GIB = 1024**3


def files() -> dict[str, str]:
    """Units of a tower with one Spark and one embedded engine."""
    specs = [*containers(), replace(process(), secrets={"LMTOWER_ENGINE_KEY": "secret"})]
    return systemd.files(
        specs, {"spark": 12 * GIB, "local": None}, {"nemotron": 90, "eyes": 40}, "http://10.0.0.2:8081"
    )


def line(unit: str, key: str) -> str:
    """The value of a key."""
    (found,) = [each.partition("=")[2] for each in unit.splitlines() if each.startswith(f"{key}=")]
    return found


def test_every_machine_gets_its_units() -> None:
    """Tower, Spark with containers, local engine as a process."""
    assert set(files()) == {
        "tower/lmtower.service",
        "spark/lmtower-node-agent.service",
        "spark/lmtower-engines.service",
        "local/lmtower-node-agent.service",
        "local/lmtower-mini.service",
        "local/secrets.env.example",
    }


def test_tower_that_starts_the_engines_leaves_the_nodes_their_agents() -> None:
    """Two that start the same containers would race; after a reboot the tower starts them, one at a time."""
    found = systemd.files(containers(), {"spark": 12 * GIB}, {}, "http://10.0.0.2:8081", up=True)
    assert set(found) == {"tower/lmtower.service", "spark/lmtower-node-agent.service"}
    started = line(found["tower/lmtower.service"], "ExecStart")
    assert started.startswith("/opt/lmtower/bin/lmtower up --yes --config /etc/lmtower/tower.yaml")


def test_agent_knows_reserve_and_importance() -> None:
    """No tower file is needed on the node."""
    assert line(files()["spark/lmtower-node-agent.service"], "ExecStart") == (
        "/opt/lmtower/bin/lmtower node-agent --node spark --reserve 12884901888 --tower http://10.0.0.2:8081"
        " --key-file /etc/lmtower/admin.key --importance nemotron=90 --importance eyes=40"
    )


def test_embedded_engine_stays_without_a_parent() -> None:
    """Nobody holds its standard input under systemd."""
    assert "--stay" in line(files()["local/lmtower-mini.service"], "ExecStart")


def test_secret_of_a_process_comes_from_the_file() -> None:
    """The key has one name in the file and another in the engine; its value is in neither unit."""
    unit = files()["local/lmtower-mini.service"]
    assert 'LMTOWER_ENGINE_KEY=\\"$$MINI_LMTOWER_ENGINE_KEY\\"' in unit
    assert "secret" not in unit.replace("secrets.env", "")
    assert files()["local/secrets.env.example"] == "MINI_LMTOWER_ENGINE_KEY=\n"


def test_processes_start_in_order() -> None:
    """The second unit waits for the first."""
    first, second = process(), replace(process(), engine="second")
    found = systemd.files([first, second], {"local": None}, {}, "http://t:8081")
    assert "lmtower-mini.service" in line(found["local/lmtower-second.service"], "After")


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("plain", "plain"),
        ("two words", '"two words"'),
        ("50%", '"50%%"'),
        ("a$b", '"a$$b"'),
        ('say "x"', '"say \\"x\\""'),
    ],
)
def test_words_survive_the_unit_file(word: str, quoted: str) -> None:
    """systemd expands % and $ in ExecStart."""
    unit = systemd.process_unit(replace(process(), argv=("/bin/echo", word), secrets={}), None, Paths())
    assert line(unit, "ExecStart") == f"/bin/echo {quoted}"


@pytest.mark.tools
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """``systemd-analyze verify`` finds nothing wrong (programs are replaced by one that exists)."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    for path, unit in files().items():
        if path.endswith(".service"):
            target = tmp_path / path.replace("/", "-").replace("spark-", "").replace("local-", "").replace(
                "tower-l", "l"
            )
            unit = unit.replace("/opt/lmtower/bin/lmtower", "/bin/true").replace("/opt/lmtower/bin/python", "/bin/true")
            target.write_text(
                unit.replace("/usr/bin/docker", "/bin/true")
                .replace(" docker.service", "")
                .replace("Requires=docker.service\n", "")
            )
    units = sorted(str(path) for path in tmp_path.glob("*.service"))
    done = subprocess.run([analyze, "verify", "--man=no", *units], capture_output=True, text=True, check=False)
    ours = [each for each in (done.stdout + done.stderr).splitlines() if "lmtower" in each]
    assert (done.returncode, ours) == (0, []), done.stderr
