"""``lmtower key``: making, listing and ending keys without a tower."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmtower.cli import main
from lmtower.ledger import Ledger

_TOWER = (
    "engines: {mine: {url: 'http://127.0.0.1:1', model: m}}\npersonas: {plan: {engine: mine}, code: {engine: mine}}\n"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a tower file of two personas."""
    monkeypatch.chdir(tmp_path)
    for name in ("LMTOWER_CONFIG", "LMTOWER_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tower.yaml").write_text(_TOWER)
    return tmp_path


def _run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_create_prints_only_the_key_into_a_pipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``KEY=$(lmtower key create NAME)`` works, and the key opens the tower."""
    code, out, _ = _run(capsys, "key", "create", "alice", "--persona", "plan", "--expires", "90d")
    assert code == 0
    assert re.fullmatch(r"sk-lmt-[A-Za-z0-9_-]{43}\n", out)
    ledger = Ledger.open(folder / "tower-data")
    client = ledger.find(out.strip())
    ledger.shut()
    assert client is not None
    assert (client.name, client.personas) == ("alice", frozenset({"plan"}))
    assert client.expires_at == pytest.approx(time.time() + 90 * 86_400, abs=60)


def test_create_tells_a_person_that_it_is_shown_once(folder: Path) -> None:
    """On a terminal the key comes with words."""
    import pty

    code = "import sys; from lmtower.cli import main; sys.exit(main(['key', 'create', 'alice']))"
    main_end, other_end = pty.openpty()
    subprocess.run([sys.executable, "-c", code], cwd=folder, stdout=other_end, check=True)
    os.close(other_end)
    shown = os.read(main_end, 4096).decode()
    os.close(main_end)
    assert re.match(r"sk-lmt-[A-Za-z0-9_-]{43}\r\n\r\nKey for 'alice'. It is not shown again.", shown)


def test_create_takes_every_limit_as_people_write_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts may have units; JSON says what was understood."""
    words = "--requests-per-minute 60 --tokens-per-minute 50k --tokens-per-day 2m --images-per-day 100"
    more = "--money-per-month 12.5 --parallel 4 --persona plan,code --json"
    code, out, _ = _run(capsys, "key", "create", "alice", *words.split(), *more.split())
    assert code == 0
    made = json.loads(out)
    assert made["limits"] == {
        "requests_per_minute": 60, "tokens_per_minute": 50_000, "tokens_per_day": 2_000_000, "images_per_day": 100,
        "money_per_month": 12.5, "parallel": 4,
    }  # fmt: skip
    assert made["personas"] == ["code", "plan"]
    assert made["key"].startswith(made["prefix"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--persona", "plam"), "no persona 'plam'. Did you mean 'plan'?"),
        (("--persona", "zzz"), "Known: plan, code."),
        (("--expires", "soon"), "neither a duration (30min, 12h, 7d) nor a date"),
        (("--expires", "2020-01-01"), "in the past"),
        (("--expires", "2020-13-41"), "not a date"),
        (("--parallel", "x"), "--parallel x: 'x' is not a count"),
        (("--money-per-month", "-1"), "--money-per-month -1: "),
    ],
)
def test_create_refuses_what_it_does_not_understand(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    """Exit code 2, what is wrong, and no key."""
    code, out, err = _run(capsys, "key", "create", "alice", *words)
    assert (code, out) == (2, "")
    assert message in err
    assert _run(capsys, "key", "list", "--json")[1] == "[]\n"


def test_list_shows_active_keys_and_never_a_secret(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Revoked ones only with --all."""
    assert "lmtower key create NAME" in _run(capsys, "key", "list")[1]
    secrets = [_run(capsys, "key", "create", name)[1].strip() for name in ("alice", "bob")]
    assert _run(capsys, "key", "revoke", "bob")[:2][0] == 0
    out = _run(capsys, "key", "list")[1]
    assert "alice" in out
    assert "bob" not in out
    everything = _run(capsys, "key", "list", "--all")[1] + _run(capsys, "key", "list", "--all", "--json")[1]
    assert "revoked" in everything
    assert not any(secret in everything for secret in secrets)


def test_revoke_names_what_it_ended_or_where_to_look(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Revoking twice is an error, exit code 1."""
    secret = _run(capsys, "key", "create", "alice")[1].strip()
    code, out, _ = _run(capsys, "key", "revoke", secret)
    assert code == 0
    assert "Revoked 'alice'" in out
    assert secret not in out
    code, _, err = _run(capsys, "key", "revoke", "alice")
    assert code == 1
    assert "lmtower key list" in err


def test_update_changes_what_is_named_and_nothing_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Limits are set one by one, `none` takes one away; the last one gone, the tower's hold; the key stays."""
    secret = _run(capsys, "key", "create", "alice", "--parallel", "4", "--persona", "plan")[1].strip()
    code, out, _ = _run(capsys, "key", "update", "alice", "--tokens-per-day", "2m", "--money-per-month", "12.5")
    assert (code, "tokens_per_day=2000000, money_per_month=12.5, parallel=4" in out) == (0, True)
    words = "--parallel none --money-per-month none --persona all --expires 90d --name cameras --json"
    changed = json.loads(_run(capsys, "key", "update", secret, *words.split())[1])
    assert (changed["name"], changed["limits"], changed["personas"]) == ("cameras", {"tokens_per_day": 2_000_000}, None)
    assert changed["expires_at"] == pytest.approx(time.time() + 90 * 86_400, abs=60)
    code, out, _ = _run(capsys, "key", "update", "cameras", "--tokens-per-day", "none", "--expires", "never")
    assert (code, "all personas; the limits of the tower; no end" in out) == (0, True)
    ledger = Ledger.open(folder / "tower-data")
    client = ledger.find(secret)
    ledger.shut()
    assert client is not None
    assert (client.limits, client.expires_at) == (None, None)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "name at least one thing to change"),
        (("--parallel", "x"), 2, "--parallel x: 'x' is not a count"),
        (("--money-per-month", "inf"), 2, "--money-per-month inf"),
        (("--persona", "plam"), 2, "Did you mean 'plan'?"),
        (("--expires", "2020-01-01"), 2, "in the past"),
        (("--name", " "), 2, "not a name"),
    ],
)
def test_update_refuses_what_it_does_not_understand(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, message: str
) -> None:
    """What is wrong is named, and the key is as before."""
    _run(capsys, "key", "create", "alice", "--parallel", "4")
    before = _run(capsys, "key", "list", "--json")[1]
    found, out, err = _run(capsys, "key", "update", "alice", *words)
    assert (found, out, message in err) == (code, "", True), err
    assert _run(capsys, "key", "list", "--json")[1] == before


def test_keys_do_not_need_a_sound_tower_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A leaked key must be revocable while the file is broken elsewhere, or gone; its ``database`` is still obeyed."""
    (folder / "tower.yaml").write_text(f"database: 'sqlite:///{folder}/other.db'\nengines: {{nonsense: 1}}\n")
    assert _run(capsys, "key", "create", "alice")[0] == 0
    assert (folder / "other.db").exists()
    (folder / "tower.yaml").unlink()
    assert "alice" not in _run(capsys, "key", "list")[1]
    assert (folder / "tower-data").exists()


def test_unusable_database_in_a_broken_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A secret that cannot be resolved for the database itself stops the command."""
    (folder / "tower.yaml").write_text("database: env:LMTOWER_NO_SUCH_VARIABLE\nengines: {}\n")
    code, _, err = _run(capsys, "key", "list")
    assert code == 2
    assert "LMTOWER_NO_SUCH_VARIABLE" in err
