"""A tower on one machine, engines on another: ssh end to end, a cut cable, recovery without a restart."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.dockerd import IMAGE, host_mounts
from tests.integration.hosts import FAR, Hosts, missing
from tests.integration.tower import Tower

pytestmark = [pytest.mark.dockerd, pytest.mark.netns]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Two machines; skipped where they cannot be made."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="lmtower-hosts-"))
    made = Hosts(folder)
    try:
        made.start()
        made.dockerd.import_image()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tower(tmp_path: Path, hosts: Hosts) -> Iterator[Tower]:
    """A tower on the near machine."""
    made = Tower(tmp_path, 18400, hosts.environ(), hosts.inside("near"))
    yield made
    hosts.mend()
    made.run("down", "--yes")


def tower_file(address: str) -> dict[str, Any]:
    """One far node with one small engine."""
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    engine = {"node": "far", "model": "bundled:smollm2", "image": IMAGE, "context": 1024, "sequences": 2}
    return {
        "nodes": {"far": {"address": address, "hardware": "cpu"}},
        "engines": {"small": {**engine, "mounts": host_mounts(), "env": env}},
        "personas": {"quick": {"engine": "small"}},
    }


def test_ssh_works_end_to_end_and_survives_a_cut_cable(tower: Tower, hosts: Hosts) -> None:
    """up over ssh, a request, a cut link with clear errors, recovery by itself, down."""
    tower.write(tower_file(hosts.address))
    assert "load done in" in tower.up()
    assert tower.chat("quick")[0] == 200
    assert f"http://{FAR}:8100" in tower.ok("status")

    hosts.cut()
    status, answer = tower.chat("quick")
    assert status in (502, 503, 504), answer
    assert isinstance(answer["error"]["code"], str)
    cut = tower.run("diff")
    assert cut.returncode == 1
    assert f"node 'far' (root@{FAR} -p 2222) cannot be reached: " in cut.stderr
    assert "there is no way to it" in cut.stderr or "does not answer" in cut.stderr

    hosts.mend()
    tower.until("the tower recovers by itself", lambda: tower.chat("quick")[0] == 200)
    tower.ok("down", "--yes")
    assert hosts.dockerd.docker("ps", "-aq").stdout == ""


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (f"ssh://root@{FAR}:2299", "nothing listens for ssh there. Start sshd"),
        ("ssh://root@10.77.0.9:2222", "Is it on, and on this network?"),
        ("ssh://nobody@10.77.0.2:2222", "ssh was refused. Put your key there: ssh-copy-id nobody@10.77.0.2 -p 2222"),
        ("ssh://root@no.such.host.invalid:2222", "its name is not known here"),
    ],
)
def test_node_that_cannot_be_reached_says_why(tower: Tower, address: str, words: str) -> None:
    """The failure table's rows of the link: port closed, host away, key refused, name unknown."""
    tower.write(tower_file(address))
    done = tower.run("up", "--yes")
    assert done.returncode == 1
    assert words in done.stderr


def test_node_is_measured_over_ssh(tower: Tower, hosts: Hosts) -> None:
    """Memory and processor of the far machine, and that it has no GPU though the tower file says so."""
    content = tower_file(hosts.address)
    content["nodes"]["far"]["hardware"] = "24 GiB"
    tower.write(content)
    done = tower.run("diff")
    assert "far: no GPU, " in done.stderr, done.stderr
    assert f"GiB free, {os.uname().machine}" in done.stderr
    assert "node 'far': hardware says 24 GiB, but nvidia-smi finds no GPU there" in done.stderr
