"""The front door: flags before and after the verb, exit codes, errors without tracebacks, help that is true."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from lmtower import __version__
from lmtower.cli import app, main
from lmtower.cli.commands import COMMANDS, GROUPS, overview
from lmtower.cli.globals import take_globals
from lmtower.errors import EngineError, Refused

ROOT = Path(__file__).resolve().parents[2]
LAPTOP = str(ROOT / "examples/laptop/tower.yaml")

Captured = pytest.CaptureFixture[str]


ORDERS = [
    ["-c", "x.yaml", "--json", "--data-dir", "d", "check"],
    ["check", "-c", "x.yaml", "--json", "--data-dir", "d"],
    ["--config=x.yaml", "check", "--data-dir=d", "--json"],
]


@pytest.mark.parametrize("argv", ORDERS, ids=lambda argv: " ".join(argv))
def test_global_options_work_before_and_after_the_verb(argv: list[str]) -> None:
    """Where a global option stands does not matter."""
    options, rest = take_globals(argv, {})
    assert (options.config, options.data_dir, options.json, rest) == (Path("x.yaml"), Path("d"), True, ["check"])


def test_global_options_come_from_the_environment_and_flags_win() -> None:
    """LMTOWER_CONFIG and LMTOWER_DATA_DIR are defaults."""
    environ = {"LMTOWER_CONFIG": "e.yaml", "LMTOWER_DATA_DIR": "e"}
    options, _ = take_globals(["-c", "x.yaml"], environ)
    assert (options.config, options.data_dir) == (Path("x.yaml"), Path("e"))


def test_nothing_after_a_double_dash_is_an_option_of_ours() -> None:
    """What follows `--` belongs to the verb."""
    assert take_globals(["key", "--", "--json"], {})[1] == ["key", "--", "--json"]


def test_version_and_help_exit_zero(capsys: Captured) -> None:
    """The two questions that everybody asks first."""
    assert (main(["--version"]), main(["--help"]), main([])) == (0, 0, 0)
    assert capsys.readouterr().out.startswith(f"lmtower {__version__}\n{overview()}")


WRONG = [
    (["chek"], "lmtower: no command 'chek'. Did you mean 'check'?"),
    (["zzz"], "lmtower: no command 'zzz'. See lmtower --help."),
    (["check", "-c"], "lmtower: -c needs a value."),
    (["check", "--nope"], "No such option: --nope"),
    (["init", "--preset", "mainframe"], "no preset 'mainframe'. There is laptop, dgx-spark."),
    (["explain", "pla", "-c", LAPTOP], "no persona 'pla'. Did you mean 'plan'?"),
    (["explain", "plan", "--protocol", "soap", "-c", LAPTOP], "no protocol 'soap'."),
]


@pytest.mark.parametrize(("argv", "message"), WRONG, ids=[" ".join(argv) for argv, _ in WRONG])
def test_wrong_call_is_refused_with_two(capsys: Captured, argv: list[str], message: str) -> None:
    """Nothing was touched: exit code 2 and one sentence on stderr."""
    assert main(argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(EngineError("it stopped"), 1), (Refused("no"), 2)])
def test_errors_of_the_tree_become_text_and_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, error: Exception, code: int
) -> None:
    """A TowerError is printed as it is, never with a traceback."""

    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(app, "_run", fail)
    assert main(["check"]) == code
    assert capsys.readouterr().err == f"{error}\n"


def test_a_bug_is_shown_short(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """An unexpected error is one line and the way to see more."""

    def fail(argv: list[str]) -> int:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(app, "_run", fail)
    monkeypatch.delenv("LMTOWER_TRACEBACK", raising=False)
    assert main(["check"]) == 1
    assert capsys.readouterr().err == "lmtower: ZeroDivisionError: oops\nSet LMTOWER_TRACEBACK=1 to see where.\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_verb_has_help_and_a_group(name: str, capsys: Captured) -> None:
    """The table, the module and the help agree."""
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: lmtower {name}")
    assert COMMANDS[name].group in GROUPS


def test_full_disk_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """One sentence with what to do, wherever it was noticed."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/engine.key")

    monkeypatch.setattr("lmtower.cli.app._run", fail)
    assert main(["up"]) == 1
    said = capsys.readouterr().err
    assert "No space left on device: '/data/engine.key'. Free space where the data folder is (--data-dir)." in said
    assert "TRACEBACK" not in said


def test_check_prints_counts_and_json(capsys: Captured) -> None:
    """A right file is exit 0, for people and for machines."""
    assert (main(["check", "-c", LAPTOP]), main(["--json", "check", "-c", LAPTOP])) == (0, 0)
    text, _, document = capsys.readouterr().out.partition("\n")
    assert text.endswith("is right: 2 engines, 5 personas.")
    assert json.loads(document) == {"ok": True, "problems": [], "warnings": []}


def test_check_of_a_wrong_file_lists_problems_for_machines(tmp_path: Path, capsys: Captured) -> None:
    """The same problems as data, and exit code 2."""
    path = tmp_path / "tower.yaml"
    path.write_text("engines: {a: {modl: m}}\npersonas: {p: {engine: a}}\n", "utf-8")
    assert main(["check", "-c", str(path), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)["problems"]
    assert [(row["path"], row["line"], row["column"]) for row in found] == [
        ("engines.a.model", 1, 11),
        ("engines.a.modl", 1, 15),
    ]


@pytest.mark.parametrize(
    ("hardware", "status"), [("dgx-sprak", 2), ("rtx-4090", 0), ("2x h100", 0), ("64 GiB", 0), ("cpu", 0)]
)
def test_check_knows_the_chips_of_the_catalogue(tmp_path: Path, hardware: str, status: int, capsys: Captured) -> None:
    """A misspelt chip is named with its line, before anybody plans with it."""
    path = tmp_path / "tower.yaml"
    path.write_text(
        f"nodes: {{box: {{hardware: {hardware}}}}}\n"
        "engines: {a: {node: box, model: m}}\npersonas: {p: {engine: a}}\n"
    )
    assert main(["check", "-c", str(path)]) == status
    assert ("tower.yaml:1:15   nodes.box.hardware:" in capsys.readouterr().err) == (status == 2)


@pytest.mark.parametrize("preset", ["laptop", "dgx-spark"])
def test_init_writes_the_example_and_refuses_to_overwrite(tmp_path: Path, preset: str, capsys: Captured) -> None:
    """The preset is the repository's example, byte for byte, and loads where it was written."""
    target = tmp_path / "new/tower.yaml"
    assert main(["init", "--preset", preset, "-c", str(target)]) == 0
    example = ROOT / "examples" / preset
    for path in example.rglob("*.*"):
        assert (target.parent / path.relative_to(example)).read_bytes() == path.read_bytes()
    assert main(["check", "-c", str(target)]) == 0
    target.write_text("mine", "utf-8")
    assert main(["init", "--preset", preset, "-c", str(target)]) == 2
    assert target.read_text("utf-8") == "mine"
    assert "overwrite with --force" in capsys.readouterr().err
    assert main(["init", "--preset", preset, "-c", str(target), "--force"]) == 0


def test_schema_is_json_schema_that_takes_sizes_as_text(capsys: Captured) -> None:
    """Editors know the keys and do not underline `12 GiB`."""
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["required"]) == {"engines", "personas"}
    reserve = schema["$defs"]["Node"]["properties"]["reserve"]
    assert {"type": "string"} in reserve["anyOf"][0]["anyOf"]


def _explain(monkeypatch: pytest.MonkeyPatch, capsys: Captured, persona: str, request: bytes) -> dict[str, object]:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(request)))
    assert main(["explain", persona, "-c", LAPTOP, "--json"]) == 0
    shown: dict[str, object] = json.loads(capsys.readouterr().out)
    return shown


def test_four_personas_send_four_bodies_for_one_request(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """One model, one request, four different upstream bodies."""
    request = b'{"model": "any", "messages": [{"role": "user", "content": "hi"}]}'
    shown = [_explain(monkeypatch, capsys, name, request) for name in ("plan", "fast", "code", "agent")]
    assert {row["url"] for row in shown} == {"http://127.0.0.1:8100/v1/chat/completions"}
    assert len({json.dumps(row["body"], sort_keys=True) for row in shown}) == 4


def test_explain_knows_the_runtime_and_what_never_reaches_an_engine(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """llama.cpp takes any number of stop strings, vLLM four; a warm-up request is answered by the gateway."""
    stops = json.dumps({"messages": [{"role": "user", "content": "hi"}], "stop": list("abcdef")}).encode()
    body = _explain(monkeypatch, capsys, "fast", stops)["body"]
    assert isinstance(body, dict)
    assert body["stop"] == list("abcdef")
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b'{"n_predict": 0}')))
    assert main(["explain", "fast", "--protocol", "infill", "-c", LAPTOP]) == 0
    assert capsys.readouterr().out.startswith("no engine is asked")


def test_explain_refuses_what_the_gateway_would_refuse(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """A broken request is named with the status that a client would see."""
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"{")))
    assert main(["explain", "plan", "-c", LAPTOP]) == 2
    assert capsys.readouterr().err.startswith("the gateway would answer 400: ")


def test_commands_that_talk_to_a_tower_say_that_none_runs(tmp_path: Path, capsys: Captured) -> None:
    """No tower is exit 1 with the way to start one."""
    assert main(["status", "--data-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"no tower runs on {tmp_path}: start it with lmtower up")


def test_version_imports_no_library() -> None:
    """The front door opens at once: nothing but our own modules and the standard library."""
    code = (
        "import sys; from lmtower.cli import main; main(['--version']); "
        "heavy = ('typer', 'pydantic', 'ruamel', 'rich', 'msgspec', 'asyncio', 'httpx'); "
        "print([module for module in heavy if module in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == f"lmtower {__version__}\n[]\n"
