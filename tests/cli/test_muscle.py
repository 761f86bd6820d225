"""The verbs over engines: what is asked first, what is printed, what is planned. No engine is started here."""

from __future__ import annotations

import asyncio
import errno
import io
import stat
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from lmtower.cli.app import main
from lmtower.cli.desired import desired_of, drivers_of, needs_of, observe
from lmtower.cli.detached import hide_keys
from lmtower.cli.engine_key import engine_key, existing_engine_key
from lmtower.cli.fleet import Fleet
from lmtower.cli.globals import Globals
from lmtower.cli.kept import kept_secret
from lmtower.cli.prefixes import prefix_requests
from lmtower.cli.progress import Printer, diff_text
from lmtower.cli.serve import serve
from lmtower.cli.serving import Serving
from lmtower.cli.up import confirm, silent_externals
from lmtower.engines import LaunchSpec
from lmtower.engines.shapes import WarmRequest
from lmtower.errors import PlanError, Refused
from lmtower.nodes.apply import Event
from lmtower.nodes.diff import Step
from lmtower.nodes.drivers import Progress
from lmtower.nodes.drivers.docker import DockerDriver
from lmtower.nodes.drivers.process import ProcessDriver
from lmtower.nodes.supervisor import Supervisor
from tests.fakes.driver import RecordingDriver

START = Step("start", "coder", "spark", "lmtower-coder", "not there yet")
REPLACE = Step("replace", "eyes", "spark", "lmtower-eyes", "its flags, image or environment changed")
KEEP = Step("keep", "embed", "spark", "lmtower-embed", "runs as it should")
SPARK = Path(__file__).parents[2] / "examples/dgx-spark/tower.yaml"


def options_of(tmp_path: Path, text: str) -> Globals:
    """The options of a call on this tower file."""
    (tmp_path / "tower.yaml").write_text(text, "utf-8")
    return Globals(tmp_path / "tower.yaml", tmp_path / "data")


def test_gateway_alone_knows_the_key_of_engines_that_up_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``serve`` on engines as they are: they ask for the key that ``up`` gave them."""
    options = options_of(tmp_path, SPARK.read_text("utf-8").replace("file:prompts", f"file:{SPARK.parent}/prompts"))
    assert existing_engine_key(options.data_dir) is None
    key = engine_key(options.data_dir)
    served: list[Serving] = []
    monkeypatch.setattr("lmtower.cli.serving.run", lambda main: main())
    monkeypatch.setattr("lmtower.cli.serving.serve_until_stopped", lambda serving, *_: served.append(serving))
    monkeypatch.setattr("lmtower.cli.logs_setup.configure_logs", lambda **_: None)
    serve(SimpleNamespace(obj=options), port=None)  # type: ignore[arg-type]
    assert {each.api_key for each in served[0].configuration().upstreams} == {key}


def test_diff_is_a_table_with_signs() -> None:
    """One line a step: what happens to which engine, and why."""
    assert diff_text((START, REPLACE, KEEP)).splitlines() == [
        "   ENGINE  NODE   STEP     WHY",
        "+  coder   spark  start    not there yet",
        "~  eyes    spark  replace  its flags, image or environment changed",
        "=  embed   spark  keep     runs as it should",
    ]


def test_starting_needs_no_confirmation(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing that runs is touched, so nothing is asked; the diff is shown."""
    confirm((START, KEEP), yes=False)
    assert "start" in capsys.readouterr().err


def test_nothing_to_do_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """A second up is silent about engines."""
    confirm((KEEP,), yes=False)
    assert capsys.readouterr().err == ""


def test_touching_running_engines_without_a_terminal_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script must say --yes."""
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(Refused, match="Add --yes"):
        confirm((REPLACE,), yes=False)
    confirm((REPLACE,), yes=True)


def test_progress_elsewhere_than_a_terminal_is_a_line_every_tenth() -> None:
    """A log file is not filled with bars."""
    out = io.StringIO()
    printer = Printer(out)
    for done in range(0, 101, 5):
        printer(Event("coder", "spark", "fetch", progress=Progress("image x", done * 2**30, 100 * 2**30)))
    lines = out.getvalue().splitlines()
    assert len(lines) == 11
    assert lines[5] == "coder  image x [###############...............]  50% 50.0 of 100.0 GiB"


def test_phases_are_told_with_their_time() -> None:
    """Begin and end of a phase; a fetch that had nothing to do is not mentioned."""
    out = io.StringIO()
    printer = Printer(out)
    printer(Event("coder", "spark", "fetch", "image", 0.1))
    printer(Event("coder", "spark", "load"))
    printer(Event("coder", "spark", "load", "", 61.25))
    printer(Event("coder", "spark", "measured", "took 5.0 GiB, planned 5.5 GiB"))
    assert out.getvalue().splitlines() == [
        "coder  load ...",
        "coder  load done in 61.2 s",
        "coder  measured: took 5.0 GiB, planned 5.5 GiB",
    ]


def test_spark_preset_is_planned_and_written_down(tmp_path: Path) -> None:
    """The example's four engines, largest first, each with memory, reserve and warm-up requests."""
    options = Globals(SPARK, tmp_path)
    wanted = desired_of(options, options.load())
    assert [spec.engine for spec in wanted.specs] == ["nemotron", "eyes", "coder", "embed"]
    needs = needs_of(wanted)
    assert needs["nemotron"].memory_bytes > 70 * 2**30
    assert needs["nemotron"].reserve_bytes == 12 * 2**30
    assert [each.what for each in needs["nemotron"].warm_requests][-2:] == [
        "prefix of nemotron-plan",
        "prefix of nemotron-code",
    ]


def test_second_plan_gives_the_same_hashes(tmp_path: Path) -> None:
    """Or a second up would replace engines that nobody changed."""
    options = Globals(SPARK, tmp_path)
    first, second = (desired_of(options, options.load()) for _ in range(2))
    assert [spec.spec_hash for spec in first.specs] == [spec.spec_hash for spec in second.specs]


def test_warm_up_prefix_is_what_the_persona_sends(tmp_path: Path) -> None:
    """The system prompt of the persona, one output token, no stream."""
    options = Globals(SPARK, tmp_path)
    wanted = desired_of(options, options.load())
    (plan, _) = prefix_requests(wanted.tower, wanted.rows["nemotron"])
    assert plan.path == "/v1/chat/completions"
    assert plan.body["messages"][0]["role"] == "system"
    assert plan.body["messages"][0]["content"].startswith(wanted.tower.personas["nemotron-plan"].system or "-")
    assert (plan.body["max_tokens"], plan.body["stream"]) == (1, False)


def test_node_without_hardware_is_refused(tmp_path: Path) -> None:
    """A remote node of which nothing is known cannot be planned."""
    options = options_of(
        tmp_path,
        "nodes: {far: {address: ssh://me@far}}\nengines: {one: {model: Qwen/Qwen3-8B, node: far}}\n"
        "personas: {p: {engine: one}}\n",
    )
    with pytest.raises(Refused, match=r"nodes\.far\.hardware: missing.*dgx-spark.*cpu"):
        desired_of(options, options.load())


def test_set_that_does_not_fit_is_refused_with_its_reasons(tmp_path: Path) -> None:
    """Exit code 2 before anything is touched."""
    options = options_of(
        tmp_path,
        "nodes: {box: {hardware: rtx-4090}}\nengines: {big: {node: box, context: 200k, sequences: 4,"
        " model: nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4}}\npersonas: {p: {engine: big}}\n",
    )
    with pytest.raises(PlanError, match="too much"):
        desired_of(options, options.load())


def test_engine_key_is_made_once_and_private(tmp_path: Path) -> None:
    """Engines of a later start ask for the same key; nobody else may read it."""
    key = engine_key(tmp_path)
    assert engine_key(tmp_path) == key
    assert stat.S_IMODE((tmp_path / "engine.key").stat().st_mode) == 0o600


def test_secret_that_could_not_be_written_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk must not leave an empty key, with which every engine would be open; an empty file is no key."""
    path = tmp_path / "engine.key"
    path.touch()

    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lmtower.cli.kept.secrets.token_urlsafe", full)
        with pytest.raises(OSError, match="No space"):
            kept_secret(path)
    assert [each.name for each in tmp_path.iterdir()] == ["engine.key"]
    made = kept_secret(path)
    assert len(made) >= 40
    assert made == path.read_text("utf-8").strip() == kept_secret(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_first_key_does_not_stay_in_the_log_of_the_background(tmp_path: Path) -> None:
    """It was shown to the person; in the file its place is filled with stars, and nothing else moves."""
    log = tmp_path / "tower.log"
    log.write_text(
        "key      sk-lmt-YJky-MbLCUq2RmkMJCWkDRx3mIHuvIQcFfPJlDoVRCU\n  -H 'Bearer sk-lmt-" + "x" * 43 + "'\nend\n"
    )
    hide_keys(log)
    assert log.read_text() == f"key      sk-lmt-{'*' * 43}\n  -H 'Bearer sk-lmt-{'*' * 43}'\nend\n"


@pytest.mark.parametrize("verb", ["pull", "logs", "restart"])
def test_engine_that_is_not_in_the_file_is_refused(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong name is told with the right ones."""
    options_of(tmp_path, "engines: {mini: {model: bundled:smollm2}}\npersonas: {mini: {engine: mini}}\n")
    assert main(["-c", str(tmp_path / "tower.yaml"), "--data-dir", str(tmp_path / "data"), verb, "nobody"]) == 2
    assert "there is no engine 'nobody' in the tower file; there is mini." in capsys.readouterr().err


def test_pull_and_logs_say_when_there_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bundled model needs no fetching; an engine that never ran has no log."""
    options_of(tmp_path, "engines: {mini: {model: bundled:smollm2}}\npersonas: {mini: {engine: mini}}\n")
    flags = ["-c", str(tmp_path / "tower.yaml"), "--data-dir", str(tmp_path / "data")]
    assert main([*flags, "pull"]) == 0
    assert "mini  is there, after 0.0 s" in capsys.readouterr().err
    assert main([*flags, "logs", "mini"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", "engine 'mini' has written nothing on local; did it ever start? lmtower diff\n")


async def test_driver_follows_the_node(tmp_path: Path) -> None:
    """Child processes here, containers elsewhere; a node that is away is a reason, not a crash."""
    options = options_of(
        tmp_path,
        "nodes: {here: {}, box: {driver: docker, hardware: cpu}}\n"
        "engines: {one: {model: bundled:smollm2, node: here}}\n"
        "personas: {p: {engine: one}}\n",
    )
    options = Globals(options.config, options.data_dir, environ={"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})
    drivers = drivers_of(options, options.load().tower)
    assert [type(driver) for driver in drivers.values()] == [ProcessDriver, DockerDriver]
    found, unreachable = await observe(drivers)
    assert found == ()
    assert list(unreachable) == ["box"]


async def test_external_engine_that_does_not_answer_is_told(tmp_path: Path) -> None:
    """The tower serves anyway; a person reads why requests will fail."""
    options = options_of(
        tmp_path, 'engines: {mine: {url: "http://127.0.0.1:9", model: x}}\npersonas: {p: {engine: mine}}\n'
    )
    (reason,) = await silent_externals(options.load().tower)
    assert reason.startswith("engine 'mine': nobody answers at http://127.0.0.1:9. Check engines.mine.url")


def test_long_load_is_told_where_it_is() -> None:
    """Elsewhere than on a terminal each new stage is a line, not every tick."""
    out = io.StringIO()
    printer = Printer(out)
    for seconds, words in ((3, ""), (6, "reading weights"), (9, "reading weights"), (12, "compiling")):
        printer(Event("coder", "spark", "load", words, elapsed=seconds))
    assert out.getvalue().splitlines() == ["coder  load 6 s: reading weights", "coder  load 12 s: compiling"]


async def test_edited_prompt_is_sent_once_to_its_running_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reload the first user of a new prompt hits a warm cache, too; prompts that stayed are not sent again."""
    sent: list[tuple[str, str]] = []

    async def warm_up(spec: LaunchSpec, requests: Sequence[WarmRequest]) -> None:
        sent.extend((spec.engine, each.what) for each in requests)

    monkeypatch.setattr("lmtower.nodes.warmup.warm_up", warm_up)
    text = """
engines: {smol: {model: "bundled:smollm2"}}
personas:
  calm: {engine: smol, system: "You are calm."}
  kind: {engine: smol, system: "You are kind."}
"""
    options = options_of(tmp_path, text)
    driver = RecordingDriver()
    supervisor = Supervisor({"local": driver}, watch_seconds=3600)
    fleet = Fleet(lambda: desired_of(options, options.load()), {"local": driver}, supervisor, lambda _: None)
    wanted = desired_of(options, options.load())
    fleet.prime(wanted)
    assert sent == []  # nothing runs yet
    supervisor.adopt(wanted.specs[0])
    fleet.prime(wanted)
    fleet.prime(wanted)
    await asyncio.sleep(0)
    assert sent == [("smol", "prefix of calm"), ("smol", "prefix of kind")]
    options = options_of(tmp_path, text.replace("are calm", "are very calm"))
    fleet.prime(desired_of(options, options.load()))
    await asyncio.sleep(0)
    assert sent[2:] == [("smol", "prefix of calm")]
    await fleet.close()
