"""What a right tower file becomes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from lmtower.config import Loaded, load, stamp
from lmtower.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
MINIMAL = """\
engines:
  one: {model: some/model}
personas:
  p: {engine: one}
"""


def loaded(folder: Path, text: str, overrides: dict[str, object] | None = None, **environ: str) -> Loaded:
    """The file with this text, loaded."""
    path = folder / "tower.yaml"
    path.write_text(text, "utf-8")
    return load(path, overrides, environ=environ)


def test_minimal_file_has_defaults_for_everything_else(tmp_path: Path) -> None:
    """Four lines are a tower."""
    tower = loaded(tmp_path, MINIMAL).tower
    assert (tower.gateway.listen, tower.personas["p"].lane, tower.engines["one"].prefix_caching) == (
        "0.0.0.0:8080",
        "default",
        True,
    )


@pytest.mark.parametrize("word", ["on", "off", "low", "auto"])
def test_yaml_words_stay_words(tmp_path: Path, word: str) -> None:
    """`on` and `off` are not booleans in YAML 1.2."""
    text = MINIMAL.replace("engine: one", f"engine: one, thinking: {word}")
    assert loaded(tmp_path, text).tower.personas["p"].thinking == word


@pytest.mark.parametrize(("word", "expected"), [("on", True), ("off", False), ("true", True), ("no", False)])
def test_switches_take_words_and_booleans(tmp_path: Path, word: str, expected: bool) -> None:
    """Where a switch is wanted, the words mean what they say."""
    text = MINIMAL.replace("model: some/model", f"model: m, prefix_caching: {word}")
    assert loaded(tmp_path, text).tower.engines["one"].prefix_caching is expected


SIZES = [
    ("context: 200k", "context", 200_000),
    ("context: 128Ki", "context", 131_072),
    ("context: max", "context", "max"),
    ("context: 1_000", "context", 1000),
    ("kv_cache_memory: 12 GiB", "kv_cache_memory", 12 * 1024**3),
    ("kv_cache_memory: 1.5GB", "kv_cache_memory", 1_500_000_000),
    ("kv_cache_memory: 12G", "kv_cache_memory", 12 * 1024**3),
    ("port: 9000", "port", 9000),
]


@pytest.mark.parametrize(("line", "key", "expected"), SIZES)
def test_sizes_are_read_as_people_write_them(tmp_path: Path, line: str, key: str, expected: object) -> None:
    """Counts, bytes and seconds come out as numbers."""
    tower = loaded(tmp_path, MINIMAL.replace("model: some/model", f"model: m, {line}")).tower
    assert getattr(tower.engines["one"], key) == expected


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30.0), ("20min", 1200.0), ("250ms", 0.25), ("2h", 7200.0)])
def test_durations_are_seconds(tmp_path: Path, text: str, seconds: float) -> None:
    """Durations take the usual units."""
    tower = loaded(tmp_path, MINIMAL + f"gateway: {{keepalive: {text}}}\n").tower
    assert tower.gateway.keepalive == seconds


def test_references_are_resolved_and_watched(tmp_path: Path) -> None:
    """`file:` is relative to the tower file, its end trimmed; `env:` comes from the environment."""
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts/p.md").write_text("Be brief.\n\n", "utf-8")
    text = MINIMAL.replace("engine: one", "engine: one, system: file:prompts/p.md")
    found = loaded(tmp_path, text.replace("model: some/model", "model: m, api_key: env:KEY"), KEY="secret")
    key = found.tower.engines["one"].api_key
    assert key is not None
    assert (found.tower.personas["p"].system, key.get_secret_value()) == ("Be brief.", "secret")
    assert list(found.watched_files) == [tmp_path / "tower.yaml", tmp_path / "prompts/p.md"]


def test_texts_for_models_are_not_references(tmp_path: Path) -> None:
    """A prefix that looks like a reference is sent as it is."""
    tower = loaded(tmp_path, MINIMAL.replace("engine: one", 'engine: one, prefix: "file: "')).tower
    assert tower.personas["p"].prefix == "file: "


def test_secrets_and_prompts_do_not_show_in_repr(tmp_path: Path) -> None:
    """A tower that lands in a log tells nothing."""
    text = MINIMAL.replace("engine: one", "engine: one, system: very private").replace(
        "some/model", "m, api_key: env:K"
    )
    text += "database: env:K\nredis: env:K\n"
    shown = repr(loaded(tmp_path, text, K="hunter2").tower)
    assert "hunter2" not in shown
    assert "very private" not in shown


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    """Two personas may share their keys; the explicit key wins."""
    text = MINIMAL.replace("p: {engine: one}", "p: &p {engine: one, temperature: 0.2}\n  q: {<<: *p, temperature: 0.9}")
    personas = loaded(tmp_path, text).tower.personas
    assert (personas["p"].temperature, personas["q"].temperature) == (0.2, 0.9)


def test_overrides_win_and_may_name_dotted_names(tmp_path: Path) -> None:
    """`engines.NAME.key` finds the longest known name, dots included."""
    text = MINIMAL.replace("p:", "qwen2.5-coder:")
    overrides: dict[str, object] = {
        "personas.qwen2.5-coder.lane": "batch",
        "engines.one.context": "8k",
        "limits.parallel": 3,
    }
    tower = loaded(tmp_path, text, overrides).tower
    assert (tower.personas["qwen2.5-coder"].lane, tower.engines["one"].context, tower.limits.parallel) == (
        "batch",
        8000,
        3,
    )


def test_problem_of_another_room_has_its_place_in_the_file(tmp_path: Path) -> None:
    """Later rooms can point into the file; what is not written has its parent's place."""
    found = loaded(tmp_path, MINIMAL)
    problems = [found.problem(path, "wrong.") for path in (("personas", "p", "engine"), ("engines", "one", "context"))]
    assert [(each.path, each.line, each.column) for each in problems] == [
        ("personas.p.engine", 4, 7),
        ("engines.one.context", 2, 3),
    ]


def test_tower_is_immutable(tmp_path: Path) -> None:
    """A snapshot cannot be changed behind a request's back."""
    tower = loaded(tmp_path, MINIMAL).tower
    with pytest.raises(ValidationError):
        tower.gateway.listen = "x"


WARNINGS = [
    ("my/model: {engine: one}", "Claude Code cannot select a name with '/'"),
    ("demo1: {engine: one}", "the name contains 'o1'"),
    ("my-gpt: {engine: one}", "the name contains 'gpt'"),
    ("complete: {engine: one, fim: qwen2.5-coder}", "Put the family into it, such as 'qwen2.5-coder'"),
    ("p: {engine: one, temperature: 1, enforce: {temperature: 0}}", "temperature is under enforce: too"),
]


@pytest.mark.parametrize(("persona", "expected"), WARNINGS, ids=[expected for _, expected in WARNINGS])
def test_names_that_trip_clients_are_warned_about(tmp_path: Path, persona: str, expected: str) -> None:
    """What works but surprises is a warning with its place, not an error."""
    warnings = loaded(tmp_path, MINIMAL.replace("p: {engine: one}", persona)).warnings
    assert [(expected in warning.message, warning.line) for warning in warnings] == [(True, 4)]


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*/tower.yaml")), ids=lambda path: path.parent.name)
def test_every_example_loads_without_warnings(path: Path) -> None:
    """What we show people is right."""
    assert load(path, environ={"ENGINE_KEY": "x"}).warnings == ()


def test_examples_are_the_full_sets() -> None:
    """The laptop mirrors the Spark's four personas; the Spark has the whole set of specialists."""
    laptop = load(ROOT / "examples/laptop/tower.yaml").tower
    spark = load(ROOT / "examples/dgx-spark/tower.yaml").tower
    assert list(laptop.personas)[:4] == ["plan", "fast", "code", "agent"]
    assert list(spark.engines) == ["nemotron", "eyes", "coder", "embed"]
    for name in ("plan", "fast", "code", "agent"):
        small, large = laptop.personas[name], spark.personas[f"nemotron-{name}"]
        assert (small.thinking, small.temperature, small.tools, small.enforce, small.lane) == (
            large.thinking,
            large.temperature,
            large.tools,
            large.enforce,
            large.lane,
        )


def test_loading_imports_nothing_heavy() -> None:
    """The tower file is read without the gateway, the ledger, HTTP or terminal libraries."""
    code = (
        "import sys; from pathlib import Path; from lmtower.config import load; "
        f"load(Path({str(ROOT / 'examples/laptop/tower.yaml')!r})); "
        "heavy = ('rich', 'httpx', 'sqlalchemy', 'structlog', 'docker', 'PIL', 'asyncio'); "
        "print([module for module in heavy if module in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_certificate_lies_beside_the_tower_file_and_is_watched(tmp_path: Path) -> None:
    """Its path is relative to the tower file like every other, with and without ``file:``; it may be missing here."""
    found = loaded(tmp_path, MINIMAL + "gateway: {tls: {cert: tls/c.pem, key: 'file:tls/k.pem'}}\n")
    assert found.tower.gateway.tls is not None
    assert found.tower.gateway.tls.cert == str(tmp_path / "tls/c.pem")
    assert found.tower.gateway.tls.key == str(tmp_path / "tls/k.pem")
    assert found.watched_files[tmp_path / "tls/k.pem"] == ()


def test_wrong_file_tells_what_to_watch(tmp_path: Path) -> None:
    """A prompt that is missing now may come: the error knows the files of which one must change."""
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, MINIMAL.replace("engine: one", "engine: one, system: file:p.md"))
    assert list(caught.value.watched) == [tmp_path / "tower.yaml", tmp_path / "p.md"]


def test_stamp_changes_with_whatever_changes_the_file(tmp_path: Path) -> None:
    """Written, replaced by one of the same time and size, swapped behind a link as Kubernetes does, gone."""
    first, second, link = tmp_path / "first", tmp_path / "second", tmp_path / "link"
    for path in (first, second):
        path.write_text("12")
        os.utime(path, ns=(1, 1))
    link.symlink_to(first)
    seen = [stamp(link)]
    link.unlink()
    link.symlink_to(second)
    seen.append(stamp(link))
    second.replace(first)
    seen.append(stamp(link))
    link.unlink()
    link.symlink_to(first)
    first.write_text("123")
    seen.append(stamp(link))
    assert len(set(seen)) == 4
    assert seen[2] == stamp(tmp_path / "nothing") == ()
