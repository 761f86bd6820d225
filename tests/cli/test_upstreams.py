"""How engines of the tower file become the gateway's table of upstreams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmtower.cli.desired import plan_of
from lmtower.cli.fleet import child_plans
from lmtower.cli.serving import with_port
from lmtower.cli.upstreams import ports, upstreams_of
from lmtower.config import Loaded, Tower, load

ROOT = Path(__file__).resolve().parents[2]

TOWER = Tower.model_validate(
    {
        "nodes": {"spark": {"address": "ssh://ops@spark.lan"}, "rack": {"address": "ssh://rack", "bind": "10.0.0.9"}},
        "engines": {
            "big": {"model": "nvidia/NVIDIA-Nemotron-3-Super", "node": "spark", "sequences": 6, "context": "200k"},
            "two": {"model": "Qwen/Qwen3-8B", "nodes": ["spark", "rack"]},
            "far": {"model": "served", "url": "http://10.0.0.5:8000/v1/", "api_key": "k", "slots": 9},
            "fixed": {"model": "m", "node": "rack", "port": 8100},
        },
        "personas": {"p": {"engine": "big"}},
    }
)


def test_ports_are_counted_up_around_the_ones_that_are_written() -> None:
    """8100 is taken by name, so counting goes on at 8101."""
    assert ports(TOWER) == {"big": 8101, "two": 8102, "far": 8103, "fixed": 8100}


def test_every_copy_of_an_engine_is_an_upstream() -> None:
    """One row a replica: where it listens, what it serves, how much at once."""
    rows = [(up.replica, up.url, up.model, up.slots) for up in upstreams_of(TOWER)]
    assert rows == [
        ("big", "http://spark.lan:8101", "nvidia/NVIDIA-Nemotron-3-Super", 6),
        ("two@spark", "http://spark.lan:8102", "Qwen/Qwen3-8B", 4),
        ("two@rack", "http://10.0.0.9:8102", "Qwen/Qwen3-8B", 4),
        ("far", "http://10.0.0.5:8000", "served", 9),
        ("fixed", "http://10.0.0.9:8100", "m", 4),
    ]


def test_engine_key_goes_only_to_our_own_engines_that_others_could_reach() -> None:
    """External engines get the key of the tower file, or none."""
    keys = {up.replica: up.api_key for up in upstreams_of(TOWER, engine_key="ours")}
    assert keys == {"big": "ours", "two@spark": "ours", "two@rack": "ours", "far": "k", "fixed": "ours"}


def test_recipe_and_runtime_are_recognised() -> None:
    """The model's family and the kind of server come from the model and the url."""
    found = {up.engine: (up.runtime, up.recipe) for up in upstreams_of(TOWER)}
    assert (found["big"], found["far"]) == (("vllm", "nemotron3"), ("external", "generic"))


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        ({"model": "Qwen/Qwen3-8B", "args": {"scheduling-policy": "priority"}}, True),
        ({"model": "served", "url": "http://h:1", "args": {"--scheduling-policy": "priority"}}, True),
        ({"model": "Qwen/Qwen3-8B", "args": {"scheduling-policy": "fcfs"}}, False),
        ({"model": "x.gguf", "args": {"scheduling-policy": "priority"}}, False),
        ({"model": "Qwen/Qwen3-8B"}, False),
    ],
)
def test_priority_goes_to_engines_that_schedule_by_it(engine: dict[str, Any], told: bool) -> None:
    """vLLM refuses a priority when it was not started for it."""
    tower = Tower.model_validate({"engines": {"e": engine}, "personas": {"p": {"engine": "e"}}})
    assert [upstream.priorities for upstream in upstreams_of(tower)] == [told]


def test_engines_without_a_card_run_as_children() -> None:
    """A tower without nodes runs its engine here, as written."""
    tower = Tower.model_validate(
        {"engines": {"s": {"model": "bundled:smollm2", "context": "8k"}}, "personas": {"p": {"engine": "s"}}}
    )
    plans = child_plans(tower)
    assert [(plan.name, plan.runtime, plan.max_model_len, plan.max_num_seqs, plan.port) for plan in plans] == [
        ("s", "llamacpp", 8000, 4, 8100)
    ]
    assert child_plans(TOWER) == ()
    assert upstreams_of(tower, {plan.name: plan for plan in plans})[0].max_model_len == 8000


def test_another_port_moves_both_listeners() -> None:
    """`--port` keeps the hosts of the tower file; the admin listener takes the next port."""
    loaded = Loaded(TOWER, Path("tower.yaml"), (), (), {})
    assert with_port(loaded, 9000) == {
        "gateway.listen": "0.0.0.0:9000",
        "gateway.admin": "127.0.0.1:9001",
        "stores.listen": "127.0.0.1:9002",
    }
    assert with_port(loaded, None) == {}


@pytest.mark.parametrize(
    ("example", "engines"), [("laptop", ["smol", "words"]), ("dgx-spark", ["nemotron", "eyes", "coder", "embed"])]
)
def test_examples_are_planned_and_fit(example: str, engines: list[str]) -> None:
    """What `lmtower up` would start for our own examples can be started; the ports are the gateway's."""
    loaded = load(ROOT / "examples" / example / "tower.yaml")
    plan = plan_of(loaded, {})
    assert (plan.fits, [row.name for row in plan.engines]) == (True, engines)
    assert {row.name: row.port for row in plan.engines} == ports(loaded.tower)
