"""``lmtower console``: which addresses it takes from the running tower, the tower file and its options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmtower.cli.console import settings
from lmtower.cli.globals import Globals

TOWER = """
gateway: {listen: "0.0.0.0:8080", admin: "127.0.0.1:8081", hosts: [tower.lan]}
engines: {mine: {url: "http://10.0.0.5:8000", model: served}}
personas: {fast: {engine: mine}}
"""


def options(folder: Path, more: str = "") -> Globals:
    """A call with a tower file and a data folder."""
    (folder / "tower.yaml").write_text(TOWER + more)
    return Globals(folder / "tower.yaml", folder)


def test_running_tower_wins_over_its_file(tmp_path: Path) -> None:
    """``lmtower up --port`` moved it: tower.json knows where."""
    (tmp_path / "tower.json").write_text(json.dumps({"listen": "0.0.0.0:9000", "admin": "[::1]:9001"}))
    found = settings(options(tmp_path), None, None, frozenset())
    assert (found.gateway_url, found.admin_url) == ("http://127.0.0.1:9000", "http://[::1]:9001")


def test_options_win_over_everything(tmp_path: Path) -> None:
    """A console on another machine names both addresses; only then the certificate is checked."""
    found = settings(options(tmp_path), "http://t:1", "https://t:2/", frozenset({"c.lan"}))
    assert (found.admin_url, found.gateway_url, found.verify) == ("http://t:1", "https://t:2", True)
    assert found.hosts == {"c.lan", "tower.lan"}


@pytest.mark.parametrize(
    ("written", "url"),
    [("", None), ("observability: {prometheus: managed}", "http://127.0.0.1:9090"),
     ("observability: {prometheus: 'http://prom:9'}", "http://prom:9")],
)  # fmt: skip
def test_history_comes_from_the_prometheus_of_the_tower_file(tmp_path: Path, written: str, url: str | None) -> None:
    """Managed or elsewhere; without one there is no history."""
    assert settings(options(tmp_path, written), None, None, frozenset()).prometheus_url == url


def test_file_is_read_again_when_it_is_needed(tmp_path: Path) -> None:
    """A persona that was added shows up without a restart of the console."""
    found = settings(options(tmp_path), None, None, frozenset())
    assert set(found.read().personas) == {"fast"}
    (tmp_path / "tower.yaml").write_text(TOWER.replace("{fast:", "{slow: {engine: mine}, fast:"))
    assert set(found.read().personas) == {"fast", "slow"}
