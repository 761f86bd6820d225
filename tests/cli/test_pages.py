"""What people read: the page of ``lmtower up``, the tables of ``lmtower status``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmtower.cli import main
from lmtower.cli.admin import Admin
from lmtower.cli.globals import Globals
from lmtower.cli.output import table
from lmtower.cli.serving import Started
from lmtower.cli.welcome import curl, page
from lmtower.config import load

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = Globals(Path("tower.yaml"), Path("tower-data"))


def started(key: str | None) -> Started:
    """The laptop's tower, just started."""
    loaded = load(ROOT / "examples/laptop/tower.yaml")
    return Started(loaded, ("0.0.0.0", 8080), ("127.0.0.1", 8081), key)


def test_first_page_shows_address_key_personas_and_a_request() -> None:
    """Everything that a first request needs, once."""
    text = page(started("sk-lmt-abc"), OPTIONS)
    assert "address  http://localhost:8080/v1\nadmin    http://localhost:8081\nkey      sk-lmt-abc\n" in text
    assert "fast     smol    interactive  Short answers at once" in text
    assert "-H 'Authorization: Bearer sk-lmt-abc'" in text


def test_later_page_says_where_keys_are() -> None:
    """The key is not known any more; the page says how to make another."""
    text = page(started(None), OPTIONS)
    assert "the one from the first start; lmtower key create NAME makes another (tower-data)" in text
    assert 'Bearer $LMTOWER_KEY"' in text


def test_curl_is_one_shell_command() -> None:
    """Quotes survive the paste."""
    assert curl("http://localhost:1", "fast", "k").splitlines()[0] == "curl http://localhost:1/v1/chat/completions \\"


def test_table_aligns_words_left_and_numbers_right() -> None:
    """Columns are as wide as their longest cell; nothing is a dash."""
    assert table(("NAME", "N"), [("a", 5), ("long name", None), ("b", 123)]) == (
        "NAME         N\na            5\nlong name    -\nb          123"
    )


STATUS: dict[str, Any] = {
    "engines": [
        {
            "name": "smol",
            "state": "ready",
            "slots": 4,
            "in_flight": 1,
            "queued": {"batch": 2, "default": 1},
            "hit_rate": 0.5,
            "upstreams": [{"url": "http://127.0.0.1:8100", "healthy": False}],
            "detail": "it ended: it ran out of memory.",
        }
    ],
    "personas": [{"name": "fast", "engine": "smol", "lane": "interactive", "requests": 7, "ttft_p50": 0.012}],
    "snapshot": {"version": 3, "loaded_at": None, "error": "tower.yaml:1:1   a: wrong"},
}


def test_status_shows_engines_personas_and_a_file_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One look says what runs, what waits and why an edit had no effect."""
    (tmp_path / "tower.json").write_text('{"admin": "127.0.0.1:1"}', "utf-8")
    (tmp_path / "admin.key").write_text("secret\n", "utf-8")
    monkeypatch.setattr(Admin, "get", lambda self, path: STATUS)
    assert main(["status", "--data-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "smol    ready  1/4           3       50%  http://127.0.0.1:8100 (down)" in shown
    assert "12 ms" in shown
    assert "\nsmol: it ended: it ran out of memory.\n" in shown
    assert "cannot be used; the last good one serves:\ntower.yaml:1:1   a: wrong" in shown


def test_admin_client_keeps_its_key_to_itself(tmp_path: Path) -> None:
    """A repr in a log shows the address only."""
    (tmp_path / "tower.json").write_text('{"admin": "127.0.0.1:1"}', "utf-8")
    (tmp_path / "admin.key").write_text("secret\n", "utf-8")
    assert repr(Admin.of_running_tower(tmp_path)) == "Admin('127.0.0.1:1')"
