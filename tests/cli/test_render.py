"""``lmtower render`` and ``lmtower import``: files on disk, text on stdout, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from lmtower.cli.app import main

SPARK = """
gateway: {admin: 10.0.0.2:8081}
nodes: {spark: {address: ssh://ops@spark.lan, hardware: dgx-spark, reserve: 12 GiB}}
engines:
  coder: {node: spark, model: Qwen/Qwen2.5-Coder-1.5B, context: 8k, sequences: 4, importance: 7}
  mine: {url: "http://10.0.0.9:8000", model: served, api_key: env:MINE}
personas:
  plan: {engine: coder, temperature: 0.2, system: file:prompts/plan.md}
  fast: {engine: mine}
"""
LAPTOP = """
engines: {mini: {model: bundled:smollm2}}
personas: {mini: {engine: mini}}
"""
EXTERNAL = """
engines: {mine: {url: "http://10.0.0.9:8000", model: served}}
personas: {fast: {engine: mine}}
"""


@pytest.fixture
def tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tower file for a Spark and an external engine."""
    monkeypatch.setenv("MINE", "secret-of-mine")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/plan.md").write_text("Plan first.\n\nThen act.\n")
    (tmp_path / "tower.yaml").write_text(SPARK)
    return tmp_path / "tower.yaml"


def yaml(path: Path) -> Any:
    """All documents of a file."""
    return list(YAML(typ="safe").load_all(path.read_text()))


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("prometheus", {"prometheus.yml", "rules/lmtower.yaml"}),
        ("grafana", {"provisioning/datasources/lmtower.yaml", "dashboards/lmtower-overview.json"}),
        ("compose", {"spark/compose.yaml", "spark/.env.example"}),
        ("kubernetes", {"namespace.yaml", "engine-coder.yaml", "tower.yaml", "tower-engines.yaml"}),
        ("systemd", {"tower/lmtower.service", "spark/lmtower-node-agent.service", "spark/lmtower-engines.service"}),
        ("cloud-init", {"user-data"}),
        ("litellm", {"config.yaml"}),
    ],
)
def test_files_are_written_and_named(
    verb: str, expected: set[str], tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every kind writes its files, names each, says where it comes from and holds no secret."""
    out = tmp_path / "out"
    assert main(["-c", str(tower), "render", verb, "--out", str(out)]) == 0
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert expected <= written
    assert {str(out / path) for path in written} == set(capsys.readouterr().out.split())
    for path in written:
        text = (out / path).read_text()
        assert "secret-of-mine" not in text
        if path.endswith((".yaml", ".yml")):
            assert text.startswith("# Written by `lmtower render")
            assert yaml(out / path)
        if path.endswith(".json"):
            json.loads(text)


def test_watchdog_that_cannot_reach_the_tower_is_told(tower: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The admin listener on loopback is out of reach for an agent on another machine."""
    tower.write_text(SPARK.replace("gateway: {admin: 10.0.0.2:8081}", "gateway: {admin: 127.0.0.1:8081}"))
    assert main(["-c", str(tower), "render", "systemd"]) == 0
    assert "the watchdog on spark cannot tell the tower" in capsys.readouterr().err
    tower.write_text(SPARK.replace("gateway: {admin: 10.0.0.2:8081}", "gateway: {admin: 10.0.0.2:8081}"))
    assert main(["-c", str(tower), "render", "systemd", "--up"]) == 0
    printed = capsys.readouterr()
    assert "cannot tell the tower" not in printed.err
    assert "lmtower up --yes" in printed.out


def test_several_files_are_printed_with_their_names(tower: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --out everything goes to stdout."""
    assert main(["-c", str(tower), "render", "prometheus"]) == 0
    assert "# ==> rules/lmtower.yaml <==" in capsys.readouterr().out


def test_cloud_init_carries_file_prompts_and_names_of_secrets(tower: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the tower file refers to goes with it."""
    assert main(["-c", str(tower), "render", "cloud-init", "--ssh-key", "ssh-ed25519 AAAA me"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("#cloud-config\n")
    files = {each["path"]: each["content"] for each in YAML(typ="safe").load(text)["write_files"]}
    assert files["/etc/lmtower/tower.yaml"] == SPARK
    assert files["/etc/lmtower/prompts/plan.md"] == "Plan first.\n\nThen act.\n"
    assert files["/etc/lmtower/secrets.env"] == "MINE=\n"


def test_embedded_engine_becomes_a_unit(tmp_path: Path) -> None:
    """A laptop's engine is a process."""
    (tmp_path / "tower.yaml").write_text(LAPTOP)
    assert main(["-c", str(tmp_path / "tower.yaml"), "render", "systemd", "--out", str(tmp_path / "out")]) == 0
    assert "lmtower.nodes.embedded" in (tmp_path / "out/local/lmtower-mini.service").read_text()


@pytest.mark.parametrize(("text", "message"), [(LAPTOP, "driver: docker"), (EXTERNAL, "nothing to start")])
def test_compose_of_no_container_is_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and what to do."""
    (tmp_path / "tower.yaml").write_text(text)
    assert main(["-c", str(tmp_path / "tower.yaml"), "render", "compose"]) == 2
    assert message in capsys.readouterr().err


def test_litellm_names_what_is_lost(tower: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, so that stdout is the file."""
    assert main(["-c", str(tower), "render", "litellm"]) == 0
    captured = capsys.readouterr()
    models = YAML(typ="safe").load(captured.out)["model_list"]
    assert [each["model_name"] for each in models] == ["plan", "fast"]
    assert models[1]["litellm_params"]["api_key"] == "os.environ/MINE_KEY"
    assert "not carried: personas.plan.system: system prompt" in captured.err


LITELLM = """
model_list:
  - model_name: team/chat
    litellm_params: {model: hosted_vllm/served, api_base: "http://10.0.0.9:8000/v1", temperature: 0.5, timeout: 5}
"""


def test_import_writes_a_tower_file_that_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``lmtower check`` accepts what ``lmtower import`` wrote."""
    (tmp_path / "config.yaml").write_text(LITELLM)
    target = tmp_path / "tower.yaml"
    assert main(["import", "litellm", str(tmp_path / "config.yaml"), "--out", str(target)]) == 0
    captured = capsys.readouterr()
    assert "1 persona. Next: lmtower check" in captured.out
    assert "not carried: model_list[0] 'team/chat' timeout" in captured.err
    assert main(["-c", str(target), "check"]) == 0


def test_import_does_not_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tower file that is there stays as it is."""
    (tmp_path / "config.yaml").write_text(LITELLM)
    (tmp_path / "tower.yaml").write_text("mine")
    assert main(["import", "litellm", str(tmp_path / "config.yaml"), "-o", str(tmp_path / "tower.yaml")]) == 2
    assert (tmp_path / "tower.yaml").read_text() == "mine"
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n", "not a LiteLLM configuration"), ("a: [", "is not YAML"), ("model_list: []\n", "nothing in it")],
)
def test_import_of_something_else_is_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with its reason."""
    (tmp_path / "config.yaml").write_text(text)
    assert main(["import", "litellm", str(tmp_path / "config.yaml")]) == 2
    assert message in capsys.readouterr().err


def test_import_of_a_missing_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The name is in the message."""
    assert main(["import", "litellm", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml cannot be read" in capsys.readouterr().err


def test_unwritable_folder_is_told(tower: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file where the folder should be."""
    assert main(["-c", str(tower), "render", "prometheus", "--out", str(tower)]) == 1
    assert "cannot be written" in capsys.readouterr().err
