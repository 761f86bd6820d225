"""Every way a tower file can be wrong, and the exact words about it."""

# ruff: noqa: E501 - a case and its exact message stay on one line

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lmtower.config import load
from lmtower.errors import ConfigError

Said = Callable[..., list[str]]

BASE = """\
engines:
  eyes: {model: Qwen/Qwen3-VL-8B, context: 32k}
personas:
  see: {engine: eyes}
"""


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    """What loading this text says, one line a problem."""
    monkeypatch.chdir(tmp_path)

    def run(text: str, **environ: str) -> list[str]:
        Path("tower.yaml").write_text(text, "utf-8")
        with pytest.raises(ConfigError) as caught:
            load(Path("tower.yaml"), environ=environ)
        return str(caught.value).splitlines()

    return run


ENGINE = [
    ("contxt: 8k", "5   engines.a.contxt: unknown key. Did you mean 'context'?"),
    ("temperature: 1", "5   engines.a.temperature: unknown key here; it belongs to personas.NAME or personas.NAME.enforce."),
    ("context: lots", "5   engines.a.context: 'lots' is not a count. Write it as 4096, 32k or 128Ki."),
    ("context: 1.5", "5   engines.a.context: 1.5 is not a whole number."),
    ("context: .inf", "5   engines.a.context: inf is not a count. Write it as 4096, 32k or 128Ki."),
    ("sequences: -1", "5   engines.a.sequences: -1 is out of range: it must be at least 0."),
    ("kv_cache_memory: 3 GiBs", "5   engines.a.kv_cache_memory: '3 GiBs' is not a size. Write it as 12 GiB or 512 MiB."),
    ("runtime: vlm", "5   engines.a.runtime: 'vlm' is not one of vllm, llamacpp, external. Did you mean 'vllm'?"),
    ("runtime: external", "5   engines.a.runtime: an external engine needs its address. Add url: http://HOST:PORT"),
    ("node: sprak", "5   engines.a.node: no node 'sprak'. Did you mean 'spark'?"),
    ("node: rack", "5   engines.a.node: no node 'rack'. There is 'spark'."),
    ("url: 10.0.0.5:8000", "5   engines.a.url: '10.0.0.5:8000' is not an address. Write http://10.0.0.5:8000"),
    ("recipe: qwen33", "5   engines.a.recipe: no recipe 'qwen33'. Did you mean 'qwen3'?"),
    ("port: 70000", "5   engines.a.port: 70000 is not a port. Choose one between 1 and 65535, or leave it out."),
    ("lanes: {deadline: 2 weeks}", "13   engines.a.lanes.deadline: '2 weeks' is not a duration. Write it as 30s, 20min, 12h or 90d."),
    ("prefix_caching: maybe", "5   engines.a.prefix_caching: 'maybe' is neither on nor off."),
    ("env: {HF_TOKEN: abc}", "11   engines.a.env.HF_TOKEN: secrets are never written into the tower file. Write HF_TOKEN: env:HF_TOKEN or HF_TOKEN: file:PATH"),
    ("api_key: sk-secret", "5   engines.a.api_key: secrets are never written into the tower file. Write api_key: env:A_API_KEY or api_key: file:PATH"),
    ("api_key: env:NOT_THERE", "5   engines.a.api_key: the environment variable NOT_THERE is not set. Set it before lmtower starts."),
    ("env: {X: 1}", "11   engines.a.env.X: expected text, got 1. Write \"1\" in quotes."),
]  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), ENGINE, ids=[line for line, _ in ENGINE])
def test_engine_key_problem_names_place_and_remedy(said: Said, line: str, expected: str) -> None:
    """A wrong key of an engine is named with file, line, column, path and what to write."""
    text = f"nodes: {{spark: {{}}}}\nengines:\n  a:\n    model: m\n    {line}\npersonas: {{p: {{engine: a}}}}\n"
    assert said(text) == [f"tower.yaml:5:{expected}"]


PERSONA = [
    ("engine: eyez", "5:5   personas.see.engine: no engine 'eyez'. Did you mean 'eyes'?"),
    ("engine: eyes\n    thinking: true", "6:5   personas.see.thinking: true is not one of on, off, low, auto. Did you mean 'on'?"),
    ("engine: eyes\n    tools: stric", "6:5   personas.see.tools: 'stric' is not one of auto, strict, off. Did you mean 'strict'?"),
    ("engine: eyes\n    lane: fast", "6:5   personas.see.lane: 'fast' is not one of interactive, agent, default, batch."),
    ("engine: eyes\n    temperature: 7", "6:5   personas.see.temperature: 7 is out of range: it must be at most 2.0."),
    ("engine: eyes\n    enforce: {topp: 1}", "6:15   personas.see.enforce.topp: unknown key. Did you mean 'top_p'?"),
    ("engine: eyes\n    system: file:no.md", "6:5   personas.see.system: cannot read no.md: no such file or directory."),
    ("engine: eyes\n    fim: qwen2.5-codr", "6:5   personas.see.fim: no fill-in-the-middle template 'qwen2.5-codr'. Did you mean 'qwen2.5-coder'?"),
    ("engine: eyes\n    context: 64k", "6:5   personas.see.context: engine 'eyes' takes 32000 tokens. 32000 is the most."),
    ("engine: eyes\n    max_tokens: 32k", "6:5   personas.see.max_tokens: 32000 tokens leave no room for a prompt in a context of 32000. 16000 would."),
    ("engine: eyes\n    stop: [1]", '6:12   personas.see.stop[0]: expected text, got 1. Write "1" in quotes.'),
    ("engine: eyes\n    stop: x", "6:5   personas.see.stop: expected a list, got 'x'. Write [x]."),
    ("engine: eyes\n    limits: 3", "6:5   personas.see.limits: expected keys below it, got 3."),
    ("thinking: off", "4:3   personas.see.engine: missing. Write engine: ..."),
    ("engine:", "5:5   personas.see.engine: expected text, got nothing."),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "expected"), PERSONA, ids=[lines.split("\n")[-1].strip() for lines, _ in PERSONA])
def test_persona_key_problem_names_place_and_remedy(said: Said, lines: str, expected: str) -> None:
    """A wrong key of a persona is named with file, line, column, path and what to write."""
    text = f"engines:\n  eyes: {{model: m, context: 32k}}\npersonas:\n  see:\n    {lines}\n"
    assert said(text) == [f"tower.yaml:{expected}"]


FILE = [
    ("", "1:1   the file is empty. lmtower init writes one to start from."),
    ("- a\n", "1:1   expected keys such as engines: and personas: at the top."),
    ("a: b: c\n", "1:5   not YAML: mapping values are not allowed here."),
    ("a:\n\tb: 1\n", "2:1   YAML is indented with spaces; there is a tab here."),
    ("a: *x\n", "1:4   not YAML: found undefined alias 'x'."),
    (BASE + "gateway: {listen: 8080}\n", "5:11   gateway.listen: 8080 is not HOST:PORT. Write it as 0.0.0.0:8080"),
    (BASE + "gateway: {listen: 'x:y'}\n", "5:11   gateway.listen: 'x:y' is not HOST:PORT. Write it as 0.0.0.0:8080 or [::]:8080."),
    (BASE + "gateway: {listen: ':80', admin: '[::1]:80'}\n", "5:26   gateway.admin: port 80 is taken by gateway.listen. 81 is free."),
    (BASE + "nodes: {spark: {address: spark.lan}}\n", "5:17   nodes.spark.address: 'spark.lan' is neither local nor ssh://user@host. Write ssh://spark.lan"),
    (BASE + "database: postgresql://u:secret@h/db\n", "5:1   database: there is a password in this URL. Write database: env:DATABASE_URL or database: file:PATH"),
    (
        BASE + "stores: {uri: 's4://bucket/x'}\n",
        "5:10   stores.uri: 's4://bucket/x' is no place for vectors. Write a folder, or s3://bucket/path "
        "(az://, gs:// and file:// work, too).",
    ),
    (
        BASE + "stores: {uri: 's3:///x'}\n",
        "5:10   stores.uri: 's3:///x' names no bucket. Write s3://bucket/path.",
    ),
    (BASE + "stores: {query_persona: se}\n", "5:10   stores.query_persona: no persona 'se'. Did you mean 'see'?"),
    (BASE + "enginez: {}\n", "5:1   enginez: unknown key. Did you mean 'engines'?"),
    (BASE + "personas: {}\n", "5:1   personas: duplicate key; it is already on line 3. Keep one."),
    (BASE + "  two words: {engine: eyes}\n", "5:3   personas.two words: 'two words' is not a name. Use letters, digits, '.', '_', ':' and '-', beginning with a letter or digit."),
    ("engines: {}\npersonas: {}\n", "1:1   engines: empty. A tower needs one of its engines at least."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), FILE, ids=[expected for _, expected in FILE])
def test_file_problem_names_place_and_remedy(said: Said, text: str, expected: str) -> None:
    """A problem of the file itself or of another section is named the same way."""
    assert said(text)[0] == f"tower.yaml:{expected}"


TWO_ENGINES = [
    ("{a: {model: m}, b: {model: m}}", ["engines.a.node: missing, and there are 2 nodes. Write node: x or node: y", "engines.b.node: missing, and there are 2 nodes. Write node: x or node: y"]),
    ("{a: {model: m, node: x, port: 8100}, b: {model: m, node: x, port: 8100}}", ["engines.b.port: port 8100 is taken by engine 'a'. 8101, or leave it out."]),
    ("{a: {model: m, nodes: [x, y], port: 8100}, b: {model: m, node: y, port: 8100}}", ["engines.b.port: port 8100 is taken by engine 'a'. 8101, or leave it out."]),
    ("{a: {model: m, node: x, url: 'http://h'}, b: {model: m, node: x}}", ["engines.a.node: an engine with url: is run by somebody else. Drop node or url."]),
    ("{a: {model: m, url: 'http://h', urls: ['http://i']}, b: {model: m, node: x}}", ["engines.a.urls: url and urls exclude each other. Put all addresses into urls."]),
    ("{a: {model: m, node: x, nodes: [y]}, b: {model: m, node: x}}", ["engines.a.nodes: node and nodes exclude each other. Put all names into nodes."]),
    ("{a: {model: m, node: x, sequences: 4, lanes: {reserve: {agent: 3, interactive: 2}}}, b: {model: m, node: x}}", ["engines.a.lanes.reserve: 5 slots are reserved of 4. 4 is the most."]),
]  # fmt: skip


@pytest.mark.parametrize(("engines", "expected"), TWO_ENGINES, ids=[expected[0] for _, expected in TWO_ENGINES])
def test_engines_against_each_other_are_checked(said: Said, engines: str, expected: list[str]) -> None:
    """Rules about several engines and nodes give numbers and the value that would work."""
    lines = said(f"nodes: {{x: {{}}, y: {{}}}}\nengines: {engines}\npersonas: {{p: {{engine: a}}, q: {{engine: b}}}}\n")
    assert [line.partition("   ")[2] for line in lines] == expected


def test_all_problems_are_said_at_once_in_the_order_of_the_file(said: Said) -> None:
    """Syntax-independent problems of every kind come together, sorted by place."""
    lines = said(
        "gateway: {listen: 8080, tls: on}\n"
        "engines:\n"
        "  a: {model: m, contxt: 1}\n"
        "  a: {model: n}\n"
        "personas:\n"
        "  p: {engine: b, thinking: no, aliases: [q, x]}\n"
        "  q: {engine: a, aliases: [x]}\n"
    )
    assert [line.split()[0:2] for line in lines] == [
        ["tower.yaml:1:11", "gateway.listen:"],
        ["tower.yaml:1:25", "gateway.tls:"],
        ["tower.yaml:3:17", "engines.a.contxt:"],
        ["tower.yaml:4:3", "engines.a:"],
        ["tower.yaml:6:7", "personas.p.engine:"],
        ["tower.yaml:6:18", "personas.p.thinking:"],
        ["tower.yaml:6:42", "personas.p.aliases[0]:"],
        ["tower.yaml:7:28", "personas.q.aliases[0]:"],
    ]


def test_missing_file_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tower file is a problem of the same kind as a wrong one."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(Path("tower.yaml"))
    assert str(caught.value) == "tower.yaml   no such file. Write one with lmtower init, or name yours with -c FILE."


def test_no_problem_ever_shows_a_secret(said: Said) -> None:
    """What was written in place of a reference is not repeated."""
    text = BASE + "database: postgresql://u:hunter2@h/db\nredis: redis://:hunter2@h\n"
    text = text.replace("context: 32k", "api_key: hunter2, env: {MY_SECRET: hunter2}")
    assert "hunter2" not in "\n".join(said(text))
